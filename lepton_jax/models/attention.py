"""Attention: the one door that every model goes through, rotary positions, and the self-attention layer.

Shapes in names: B rows, T positions (S where keys are meant), H heads, K size of a head, D hidden size.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.sharding import ROW_AXES, constrain
from lepton_jax.models import relative
from lepton_jax.models.layers import Linear, together


class Context(flax.struct.PyTreeNode):
    """What every layer of a stack attends by: computed once, the same for all."""

    segments_BxT: jax.Array
    angles_BxTxR: jax.Array | None = None  # of rotary positions, R = K / 2
    local_angles_BxTxR: jax.Array | None = None  # ... in local layers
    relative_PxD: jax.Array | None = None  # embeddings of the relative positions -P/2 .. P/2 - 1
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)


def attention(
    q_BxTxHxK: jax.Array,
    k_BxSxHxK: jax.Array,
    v_BxSxHxK: jax.Array,
    segments_BxT: jax.Array,
    *,
    causal: bool = False,
    window: jax.Array | int | None = None,
    bias_BxHxTxS: jax.Array | None = None,
    scale: float | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Softmax attention within segments (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
      q_BxTxHxK, k_BxSxHxK, v_BxSxHxK: queries, keys and values, any float dtype, T = S.
      segments_BxT: int32; a position attends to those with the same number. Padding has number 0: nothing attends to
        it, and it attends to all that is not padding, so that its outputs, which nobody needs, are finite.
      causal: a position attends only to itself and to earlier ones.
      window: int [] of at least 0; a position attends to no more than so many positions to each side. None: all.
      bias_BxHxTxS: float32, added to the scaled logits.
      scale: of the products of queries and keys; None: 1 / sqrt(K).
      mesh: of the devices that rows, heads and positions are spread over; None: wherever XLA puts them.

    Returns:
      [B, T, H, K] in the dtype of q; logits and softmax are computed in float32.
    """
    T = q_BxTxHxK.shape[1]
    # Each device has its own queries and the keys and values of all: context parallelism, which serves any mask
    # (Llama 3, arXiv:2407.21783, section 3.3.2).
    k_BxSxHxK, v_BxSxHxK = (constrain(x, mesh, ROW_AXES, None, "tensor", None) for x in (k_BxSxHxK, v_BxSxHxK))
    logits_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxSxHxK, preferred_element_type=jnp.float32)
    logits_BxHxTxS = logits_BxHxTxS * (1 / math.sqrt(q_BxTxHxK.shape[-1]) if scale is None else scale)
    if bias_BxHxTxS is not None:
        logits_BxHxTxS = logits_BxHxTxS + bias_BxHxTxS
    queries, keys = segments_BxT[:, None, :, None], segments_BxT[:, None, None, :]
    seen = ((queries == keys) | (queries == 0)) & (keys > 0)
    if causal or window is not None:
        distance_TxS = (jnp.arange(T)[:, None] - jnp.arange(T)[None, :])[None, None]
        seen &= distance_TxS >= 0 if causal else True
        seen &= jnp.abs(distance_TxS) <= window if window is not None else True
    # A finite value: with -inf, a row without any key would be NaN, and the softmax's gradient has 0 * inf.
    weights_BxHxTxS = nn.softmax(jnp.where(seen, logits_BxHxTxS, -1e30), axis=-1).astype(v_BxSxHxK.dtype)
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
    """Multi-head self-attention with parameters `query`, `key`, `value`, `output`.

    Where the model has relative positions and does not share these layers with them, also `relative_key` and
    `relative_query`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, context: Context, local: jax.Array | None) -> jax.Array:
        """Attends; `local` is bool [], whether this layer sees a window alone, None where no layer does."""
        config = self.config
        B, T, D = x_BxTxD.shape
        H, K = config.num_heads, D // config.num_heads
        query, key, value = (Linear(config, D, config.bias, name=name) for name in ("query", "key", "value"))
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = (
            y_BxTxD.reshape(B, T, H, K) for y_BxTxD in together((query, key, value), x_BxTxD, context.mesh)
        )

        if (angles_BxTxR := context.angles_BxTxR) is not None:
            if local is not None and context.local_angles_BxTxR is not None:
                angles_BxTxR = jnp.where(local, context.local_angles_BxTxR, angles_BxTxR)
            q_BxTxHxK, k_BxTxHxK = rotate(q_BxTxHxK, angles_BxTxR), rotate(k_BxTxHxK, angles_BxTxR)
        scale, bias_BxHxTxS = 1 / math.sqrt(K), None
        if context.relative_PxD is not None:
            if not config.relative_shared:  # the paper's own projections, with biases as the content's
                query, key = (Linear(config, D, config.bias, name=f"relative_{name}") for name in ("query", "key"))
            scale = 1 / math.sqrt(K * (1 + len(config.relative)))
            bias_BxHxTxS = relative.logits(
                q_BxTxHxK,
                k_BxTxHxK,
                query(context.relative_PxD).reshape(-1, H, K) if "p2c" in config.relative else None,
                key(context.relative_PxD).reshape(-1, H, K) if "c2p" in config.relative else None,
                config.relative_max_distance,
            )
            bias_BxHxTxS = bias_BxHxTxS * scale
        y_BxTxHxK = attention(
            q_BxTxHxK,
            k_BxTxHxK,
            v_BxTxHxK,
            context.segments_BxT,
            causal=config.causal,
            window=None if local is None else jnp.where(local, config.local_window, T),
            bias_BxHxTxS=bias_BxHxTxS,
            scale=scale,
            mesh=context.mesh,
        )
        output = Linear(config, D, config.bias, name="output")
        return together([output], y_BxTxHxK.reshape(B, T, D), context.mesh)[0]
