"""Attention by JAX's Pallas kernel for GPUs (Triton): packed rows with memory linear in the length.

It computes all pairs of positions, those of different documents too. JAX has deprecated it, and may leave it out.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.backends.case import Case, Inputs

_KERNEL = "jax.experimental.pallas.ops.gpu"


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case, None if it can."""
    if case.capability < 8:
        return "it is for NVIDIA GPUs from compute capability 8.0 on"
    if importlib.util.find_spec(_KERNEL) is None or importlib.util.find_spec(f"{_KERNEL}.attention") is None:
        return f"JAX {jax.__version__} no longer has its kernel"
    if case.window is not None:
        return "it knows no window (model.global_every=1 has none)"
    if case.head_size > 128:
        return f"its heads have at most 128 features, not {case.head_size} (model.num_heads)"
    return case.beyond(128)


def attend(
    case: Case,
    inputs: Inputs,
    *,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """See `backends.attend`; the output at padding is 0. `interpret`: on any device, slowly."""
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT = inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        kernel: Any = importlib.import_module(f"{_KERNEL}.attention")
    segments = None if case.rows == "full" else segments_BxT  # padding attends to padding
    out_BxTxHxK = kernel.mha(
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments, sm_scale=scale, causal=case.causal, interpret=interpret
    )
    return out_BxTxHxK if segments is None else jnp.where(segments_BxT[:, :, None, None] > 0, out_BxTxHxK, 0)
