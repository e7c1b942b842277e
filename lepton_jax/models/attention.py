"""Attention: the one door that every model goes through, rotary positions, and the self-attention layer.

Shapes in names: B rows, T positions (S where keys are meant), H heads, K size of a head, D hidden size.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.config import ModelConfig
from lepton_jax.models.layers import Linear


def attention(q_BxTxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    """Bidirectional softmax attention within segments (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
      q_BxTxHxK, k_BxSxHxK, v_BxSxHxK: queries, keys and values, any float dtype, T = S.
      segments_BxT: int32; a position attends to those with the same number. Padding has number 0 and attends
        to padding, so that no row of the softmax is empty; no real position ever sees it.

    Returns:
      [B, T, H, K] in the dtype of q; logits and softmax are computed in float32.
    """
    logits_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxSxHxK, preferred_element_type=jnp.float32)
    same_Bx1xTxS = segments_BxT[:, None, :, None] == segments_BxT[:, None, None, :]
    # A finite value: with -inf, the softmax's gradient has 0 * inf.
    logits_BxHxTxS = jnp.where(same_Bx1xTxS, logits_BxHxTxS / math.sqrt(q_BxTxHxK.shape[-1]), -1e30)
    weights_BxHxTxS = nn.softmax(logits_BxHxTxS, axis=-1).astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS, v_BxSxHxK)


def rotary_angles(positions_BxT: jax.Array, head_size: int, base: float) -> jax.Array:
    """Returns the angles [B, T, K/2] of rotary positions, float32 (Su et al. 2021, arXiv:2104.09864, equation 15)."""
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    return positions_BxT[:, :, None].astype(jnp.float32) * frequencies[None, None, :]


def rotate(x_BxTxHxK: jax.Array, angles_BxTxR: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + K/2) of the last axis by the angles, R = K/2; keeps the dtype."""
    cos, sin = jnp.cos(angles_BxTxR)[:, :, None, :], jnp.sin(angles_BxTxR)[:, :, None, :]
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxTxHxK.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with parameters `query`, `key`, `value`, `output`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, segments_BxT: jax.Array, angles_BxTxR: jax.Array | None) -> jax.Array:
        config = self.config
        B, T, D = x_BxTxD.shape
        heads = (B, T, config.num_heads, D // config.num_heads)
        q_BxTxHxK = Linear(config, D, name="query")(x_BxTxD).reshape(heads)
        k_BxTxHxK = Linear(config, D, name="key")(x_BxTxD).reshape(heads)
        v_BxTxHxK = Linear(config, D, name="value")(x_BxTxD).reshape(heads)
        if angles_BxTxR is not None:
            q_BxTxHxK, k_BxTxHxK = rotate(q_BxTxHxK, angles_BxTxR), rotate(k_BxTxHxK, angles_BxTxR)
        y_BxTxHxK = attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT)
        return Linear(config, D, name="output")(y_BxTxHxK.reshape(B, T, D))
