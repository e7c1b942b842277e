"""Attention by JAX's Splash kernel for TPUs: any mask of ours, skipping blocks that a window leaves out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.backends.case import Case, Inputs

_LANES = 128


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case, None if it can."""
    if case.platform != "tpu":
        return "it is for TPUs"
    return case.beyond(_LANES)


def attend(
    case: Case,
    inputs: Inputs,
    *,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """See `backends.attend`; the output at padding is 0. `interpret`: on any device, slowly."""
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT = inputs
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (case.length, case.length)
    if case.window is not None:
        mask = masks.LocalMask(shape, (case.window, 0 if case.causal else case.window), 0)
    else:
        mask = masks.CausalMask(shape) if case.causal else masks.FullMask(shape)
    size = block(case)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * q_BxTxHxK.shape[2]),
        block_sizes=kernels.BlockSizes(size, size, size, size, size, size, size, size),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def one_row(q_HxTxK: jax.Array, k_HxTxK: jax.Array, v_HxTxK: jax.Array, segments_T: jax.Array) -> Any:
        ids = None if case.rows == "full" else kernels.SegmentIds(segments_T, segments_T)
        return kernel(q_HxTxK, k_HxTxK, v_HxTxK, segment_ids=ids)  # padding attends to padding: no row is empty

    scaled = (q_BxTxHxK * scale).astype(q_BxTxHxK.dtype)  # the kernel has no scale of its own
    q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = (x.swapaxes(1, 2) for x in (scaled, k_BxTxHxK, v_BxTxHxK))
    out_BxTxHxK = jax.vmap(one_row)(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT).swapaxes(1, 2)
    return out_BxTxHxK if case.rows == "full" else jnp.where(segments_BxT[:, :, None, None] > 0, out_BxTxHxK, 0)


def block(case: Case) -> int:
    """Returns the positions of a block: large ones are faster, small ones leave out more of what a window does."""
    sizes = [size for size in (512, 256, _LANES) if case.length % size == 0]
    return sizes[0] if case.window is None else sizes[-1]
