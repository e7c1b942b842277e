"""Attention: the one door that every model goes through, rotary positions, and the self-attention layer.

Shapes in names: B rows, T positions, H heads, K size of a head, D hidden size.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
from lepton_jax.core.sharding import ROW_AXES, constrain
from lepton_jax.models import backends, relative
from lepton_jax.models.backends import choose, xla
from lepton_jax.models.backends.case import Case, Inputs, Rows, device_of
from lepton_jax.models.layers import Linear, together

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines [B, T, R] of angles, float32


class Context(flax.struct.PyTreeNode):
    """What every layer of a stack attends by: computed once, the same for all."""

    segments_BxT: jax.Array
    rotation: Rotation | None = None  # of rotary positions
    local_rotation: Rotation | None = None  # ... in local layers
    relative_PxD: jax.Array | None = None  # embeddings of the relative positions -P/2 .. P/2 - 1
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)
    rows: Rows = flax.struct.field(pytree_node=False, default="packed")


def attention(
    q_BxTxHxK: jax.Array,
    k_BxTxHxK: jax.Array,
    v_BxTxHxK: jax.Array,
    segments_BxT: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    local: jax.Array | bool | None = None,
    bias_BxHxTxT: jax.Array | None = None,
    scale: float | None = None,
    mesh: Mesh | None = None,
    rows: Rows = "packed",
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention within segments (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
      q_BxTxHxK, k_BxTxHxK, v_BxTxHxK: queries, keys and values, any float dtype.
      segments_BxT: int32; a position attends to those with the same number. Padding has number 0, and nothing attends
        to it. What comes out at padding is finite and of no use: backends differ in it.
      causal: a position attends only to itself and to earlier ones.
      window: at least 0; a position attends to no more than so many positions to each side. None: all.
      local: bool [], whether the window holds; it may be known at run time alone. None: it does.
      bias_BxHxTxT: float32, added to the scaled logits.
      scale: of the products of queries and keys; None: 1 / sqrt(K).
      mesh: of the devices that rows, heads and positions are spread over; None: wherever XLA puts them.
      rows: what is known of the segments, see `Rows`: of "full" rows they are all 1, of "padded" ones 1, then 0.
      backend: see `choose`.

    Returns:
      [B, T, H, K] in the dtype of q; logits and softmax are computed in float32.

    Raises:
      UserError: the backend cannot do it.
    """
    T, K = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]
    # Each device has its own queries and the keys and values of all: context parallelism, which serves any mask
    # (Llama 3, arXiv:2407.21783, section 3.3.2).
    k_BxTxHxK, v_BxTxHxK = (constrain(x, mesh, ROW_AXES, None, "tensor", None) for x in (k_BxTxHxK, v_BxTxHxK))
    case = Case(length=T, head_size=K, dtype=q_BxTxHxK.dtype.name, rows=rows, causal=causal, window=window,
                bias=bias_BxHxTxT is not None, **device_of(mesh))  # fmt: skip
    everywhere = dataclasses.replace(case, window=None)
    scale = 1 / math.sqrt(K) if scale is None else scale

    inputs = Inputs(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT)

    def attend(case: Case, inputs: Inputs, **more: Any) -> jax.Array:
        if bias_BxHxTxT is not None:
            more["bias_BxHxTxT"] = bias_BxHxTxT
        return backends.attend(choose(case, backend), case, mesh, inputs, scale=scale, **more)

    if local is None or isinstance(local, (bool, np.bool_)):
        return attend(everywhere if local is not None and not local else case, inputs)
    near, far = partial(attend, case), partial(attend, everywhere)
    if choose(everywhere, backend) == "xla":
        if choose(case, backend) == "xla":
            return attend(case, inputs, local=local)  # one program, whose mask differs
        # Layers of both kinds keep what either kind does for the backward pass: of this one, no weights [B, H, T, T].
        far = jax.checkpoint(far, prevent_cse=False)
    return jax.lax.cond(local, near, far, inputs)


def attention_weights(
    q_BxTxHxK: jax.Array,
    k_BxTxHxK: jax.Array,
    segments_BxT: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    local: jax.Array | bool | None = None,
    bias_BxHxTxT: jax.Array | None = None,
    scale: float | None = None,
    mesh: Mesh | None = None,
    rows: Rows = "packed",
) -> jax.Array:
    """Returns what each position takes of each other one in `attention`, float32 [B, H, T, T]; see there for the rest.

    It is what the backend "xla" multiplies values by; others never hold it.
    """
    T, K = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]
    case = Case(length=T, head_size=K, dtype=q_BxTxHxK.dtype.name, rows=rows, causal=causal, window=window,
                bias=bias_BxHxTxT is not None, **device_of(mesh))  # fmt: skip
    seen = xla.visible(case, segments_BxT, None if local is None else jnp.asarray(local))
    q_BxHxTxK, k_BxHxTxK = q_BxTxHxK.swapaxes(1, 2), k_BxTxHxK.swapaxes(1, 2)
    scale = 1 / math.sqrt(K) if scale is None else scale
    return xla.softmax_weights(scale, q_BxHxTxK, k_BxHxTxK, seen, bias_BxHxTxT)


def backends_of(
    config: ModelConfig, length: int, packed: bool, mesh: Mesh | None, where: str = "config"
) -> dict[Case, str]:
    """Returns the backend of each kind of layers that a model has, those with a window first.

    Args:
      config: the model's.
      length, packed: of the rows.
      mesh: see `attention`.
      where: the path of the config, for messages.

    Raises:
      UserError: the backend that the config names cannot serve the layers, or none of them.
    """
    case = Case(length=length, head_size=config.hidden_size // config.num_heads, dtype=config.dtype,
                rows="packed" if packed else "padded", causal=config.causal, bias=bool(config.relative),
                **device_of(mesh))  # fmt: skip
    windows = (config.local_window, None) if config.global_every > 1 else (None,)
    if config.attention == "banded" and windows == (None,):
        raise UserError(f"{where}.model.attention='banded': is for windows, and model.global_every=1 has none; "
                        f"choose {choose(case)!r}, or 'auto'")  # fmt: skip
    cases = [dataclasses.replace(case, window=window) for window in windows]
    return {case: choose(case, config.attention, where) for case in cases}


def rotation(positions_BxT: jax.Array, head_size: int, base: float) -> Rotation:
    """Returns what rotary positions turn by, R = head_size / 2 (Su et al. 2021, arXiv:2104.09864, equation 15)."""
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles_BxTxR = positions_BxT[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles_BxTxR), jnp.sin(angles_BxTxR)


def rotate(x_BxTxHxK: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns the pairs (i, i + K/2) of the last axis by their angles; keeps the dtype."""
    cos, sin = (part_BxTxR[:, :, None, :] for part_BxTxR in rotation)
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxTxHxK.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with parameters `query`, `key`, `value`, `output`.

    Where the model has relative positions and does not share these layers with them, also `relative_key` and
    `relative_query`. Where the collection "attention" is asked for, it gets the layer's `weights`, see
    `attention_weights`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, context: Context, local: jax.Array | bool | None) -> jax.Array:
        """Attends; `local` is bool [], whether this layer sees a window alone, None where no layer does."""
        config = self.config
        B, T, D = x_BxTxD.shape
        H, K = config.num_heads, D // config.num_heads
        query, key, value = (Linear(config, D, config.bias, name=name) for name in ("query", "key", "value"))
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = (
            y_BxTxD.reshape(B, T, H, K) for y_BxTxD in together((query, key, value), x_BxTxD, context.mesh)
        )

        if (turn := context.rotation) is not None:
            if local is not None and context.local_rotation is not None:
                turn = jax.tree.map(lambda *parts: jnp.where(local, *parts), context.local_rotation, turn)
            q_BxTxHxK, k_BxTxHxK = rotate(q_BxTxHxK, turn), rotate(k_BxTxHxK, turn)
        scale, bias_BxHxTxT = 1 / math.sqrt(K), None
        if context.relative_PxD is not None:
            if not config.relative_shared:  # the paper's own projections, with biases as the content's
                query, key = (Linear(config, D, config.bias, name=f"relative_{name}") for name in ("query", "key"))
            scale = 1 / math.sqrt(K * (1 + len(config.relative)))
            bias_BxHxTxT = relative.logits(
                q_BxTxHxK,
                k_BxTxHxK,
                query(context.relative_PxD).reshape(-1, H, K) if "p2c" in config.relative else None,
                key(context.relative_PxD).reshape(-1, H, K) if "c2p" in config.relative else None,
                config.relative_max_distance,
            )
            bias_BxHxTxT = bias_BxHxTxT * scale
        options: dict[str, Any] = {
            "causal": config.causal, "window": None if local is None else config.local_window, "local": local,
            "bias_BxHxTxT": bias_BxHxTxT, "scale": scale, "mesh": context.mesh, "rows": context.rows,
        }  # fmt: skip
        segments_BxT = context.segments_BxT
        if self.is_mutable_collection("attention") and not self.is_initializing():
            weights = attention_weights(q_BxTxHxK, k_BxTxHxK, segments_BxT, **options)
            self.sow("attention", "weights", weights, lambda _, new: new, lambda: weights)
        y_BxTxHxK = attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT, backend=config.attention, **options)
        output = Linear(config, D, config.bias, name="output")
        return together([output], y_BxTxHxK.reshape(B, T, D), context.mesh)[0]
