"""Attention by cuDNN's fused kernels, through `jax.nn.dot_product_attention`: NVIDIA GPUs, 16 bits.

Without padding, or with padding at the right alone, memory is linear in the length. Packed rows and windows need a mask
[B, 1, T, T], which cuDNN takes as a bias.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.backends.case import Case, Inputs


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case, None if it can."""
    widest = 256 if case.capability >= 9 else 128
    if case.capability < 8:
        return "it is for NVIDIA GPUs from compute capability 8.0 on"
    if not case.half:
        return f"it computes in bfloat16, not in model.dtype={case.dtype!r}"
    if case.head_size % 8 or case.head_size > widest:
        return f"its heads have a multiple of 8 and at most {widest} features, not {case.head_size} (model.num_heads)"
    return case.beyond(128)  # with other lengths its backward pass can fail or give NaN, depending on its version


def attend(
    case: Case,
    inputs: Inputs,
    *,
    scale: float,
) -> jax.Array:
    """See `backends.attend`; the output at padding is 0."""
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT = inputs
    options: dict[str, Any] = {"scale": scale, "implementation": "cudnn", "is_causal": case.causal}
    if case.rows == "packed" or case.window is not None:
        # Padding attends to padding: a row of the mask without any key would give NaN.
        mask_Bx1xTxT = segments_BxT[:, None, :, None] == segments_BxT[:, None, None, :]
        distance = (jnp.arange(case.length)[:, None] - jnp.arange(case.length)[None, :])[None, None]
        if case.causal:
            mask_Bx1xTxT &= distance >= 0
        if case.window is not None:
            mask_Bx1xTxT &= jnp.abs(distance) <= case.window
        options |= {"mask": mask_Bx1xTxT, "is_causal": False}
    elif case.rows == "padded":
        # A row of padding alone sees its first position, whose value is 0.
        lengths_B = jnp.maximum(jnp.sum(segments_BxT > 0, axis=1, dtype=jnp.int32), 1)
        options |= {"query_seq_lengths": lengths_B, "key_value_seq_lengths": lengths_B}
    if case.rows == "full":
        return jax.nn.dot_product_attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, **options)
    real = segments_BxT[:, :, None, None] > 0  # selected, not multiplied: what is not a number stays outside
    qkv = (jnp.where(real, x, 0) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
    return jnp.where(real, jax.nn.dot_product_attention(*qkv, **options), 0)
