"""Attention in a window, block by block: time and memory grow with the length, not with its square.

Rows are cut into blocks of at least `window` positions. The queries of a block see keys of its own and of its two
neighbours alone (Beltagy et al. 2020, arXiv:2004.05150, section 3.1): blocks become rows of a smaller attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lepton_jax.models.backends import xla
from lepton_jax.models.backends.case import Case, Inputs

_LEAST = 64  # positions of a block: smaller products are slow
_MULTIPLE = 16


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case, None if it can."""
    if case.window is None:
        return "it is for layers that see a window alone"
    return case.beyond()


def pays(case: Case) -> bool:
    """Returns whether it is likely to be faster than a mask over all pairs."""
    return case.window is not None and case.length >= 6 * block(case.window)


def block(window: int) -> int:
    """Returns the positions of a block for a window."""
    return max(_LEAST, -(-window // _MULTIPLE) * _MULTIPLE)


def attend(
    case: Case,
    inputs: Inputs,
    *,
    scale: float,
) -> jax.Array:
    """See `backends.attend`. C positions a block, N = ceil(T / C) blocks, S = 3C keys a block, 2C if causal."""
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT = inputs
    assert case.window is not None
    B, T, C = *segments_BxT.shape, block(case.window)

    def blocks(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [B, N, C, ...]; what is added at the end is in segment 0."""
        x = jnp.pad(x, [(0, 0), (0, -T % C), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(B, -1, C, *x.shape[2:])

    def with_neighbours(x: jax.Array) -> jax.Array:
        """[B, N, C, ...] -> [B, N, S, ...]: the block before, the block, the block after."""
        ends = jnp.pad(x, [(0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2)])
        shifted = [ends[:, :-2], x] if case.causal else [ends[:, :-2], x, ends[:, 2:]]
        return jnp.concatenate(shifted, axis=2)

    def as_rows(x_BxNxCxHxK: jax.Array) -> jax.Array:
        """[B, N, C, H, K] -> [B * N, H, C, K]."""
        return x_BxNxCxHxK.reshape(-1, *x_BxNxCxHxK.shape[2:]).swapaxes(1, 2)

    segments_BxNxC = blocks(segments_BxT)
    keys_BxNxS = with_neighbours(segments_BxNxC)
    queries, keys = segments_BxNxC[:, :, :, None], keys_BxNxS[:, :, None, :]
    distance = C + jnp.arange(C)[:, None] - jnp.arange(keys_BxNxS.shape[2])[None, :]
    near_CxS = (distance >= 0 if case.causal else True) & (jnp.abs(distance) <= case.window)
    seen_BxNxCxS = ((queries == keys) | (queries == 0)) & (keys > 0) & near_CxS[None, None]
    seen = seen_BxNxCxS.reshape(-1, 1, *seen_BxNxCxS.shape[2:])
    q, k, v = (blocks(x) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
    out = xla.softmax_attention(scale, as_rows(q), as_rows(with_neighbours(k)), as_rows(with_neighbours(v)), seen, None)
    return out.swapaxes(1, 2).reshape(B, -1, *q_BxTxHxK.shape[2:])[:, :T]
