"""Disentangled attention to relative positions (He et al. 2020, arXiv:2006.03654, section 3.1; buckets: 2111.09543)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def logits(
    q_BxTxHxK: jax.Array,
    k_BxTxHxK: jax.Array,
    position_query_PxHxK: jax.Array | None,
    position_key_PxHxK: jax.Array | None,
    max_distance: int,
) -> jax.Array:
    """Returns what relative positions add to the unscaled logits of content, float32 [B, H, T, T].

    Of a query i and a key j at distance i - j: query i times the position's key ("content to position", given
    `position_key`) plus key j times the position's query ("position to content", given `position_query`).

    Args:
      q_BxTxHxK, k_BxTxHxK: of the content.
      position_query_PxHxK, position_key_PxHxK: of the P = 2 * span rows of the table of relative positions.
      max_distance: see `rows_of_distances`.
    """
    T = q_BxTxHxK.shape[1]

    def products(x_BxTxHxK: jax.Array, table_PxHxK: jax.Array, rows: np.ndarray) -> jax.Array:
        """Returns [B, H, T, T]: x at t times the row for (t, s)."""
        by_distance = jnp.einsum("bthk,rhk->bhtr", x_BxTxHxK, table_PxHxK[rows], preferred_element_type=jnp.float32)
        return _by_position(by_distance)

    total = jnp.zeros((), jnp.float32)
    if position_key_PxHxK is not None:  # s runs over keys: the distance t - s falls
        rows = rows_of_distances(T, position_key_PxHxK.shape[0] // 2, max_distance)
        total += products(q_BxTxHxK, position_key_PxHxK, rows[::-1])
    if position_query_PxHxK is not None:  # t is the key, s runs over queries: the distance s - t rises
        rows = rows_of_distances(T, position_query_PxHxK.shape[0] // 2, max_distance)
        total += products(k_BxTxHxK, position_query_PxHxK, rows).swapaxes(-1, -2)
    return total


def rows_of_distances(length: int, span: int, max_distance: int) -> np.ndarray:
    """Returns the table's row for each distance -(length - 1) .. length - 1, int64 [2 * length - 1].

    Args:
      length: T.
      span: distance d has row d + span, cut to 0 .. 2 * span - 1.
      max_distance: 0: each distance has its row; else distances beyond span / 2 share rows, log-spaced, so that this
        distance comes near the last row.
    """
    distance = np.arange(-(length - 1), length)
    if max_distance:
        middle = span // 2
        # In float32, as the models were trained: elsewhere a few distances would round into the next bucket.
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        log = np.log(far) / np.log(np.float32((max_distance - 1) / middle)) * np.float32(middle - 1)
        buckets = np.sign(distance) * (np.ceil(log).astype(np.int64) + middle)
        distance = np.where(np.abs(distance) <= middle, distance, buckets)
    return np.clip(distance + span, 0, 2 * span - 1)


def _by_position(x_BxHxTxR: jax.Array) -> jax.Array:
    """Returns y [B, H, T, T] with y[t, s] = x[t, s - t + T - 1], R = 2T - 1, by reshapes alone: a gather is slow."""
    B, H, T, R = x_BxHxTxR.shape
    if T == 1:
        return x_BxHxTxR
    flat = x_BxHxTxR.reshape(B, H, T * R)[:, :, T - 1 : T - 1 + T * (R - 1)]
    return flat.reshape(B, H, T, R - 1)[:, :, :, :T]
