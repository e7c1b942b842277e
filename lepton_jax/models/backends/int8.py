"""Attention whose two products multiply int8 by int8 into int32: for predictions, where it is asked for by name.

Queries, keys and values are rounded token by token and head by head, each by its own largest value: no token changes
how another one is rounded, and what does not see a token is the same without it, bit for bit. A value's scale goes into
its weights, and there as a logarithm into the logits, so that the weights of each query fill int8:

    logits_ts  = q8_t . k8_s * scale_of_q_t * scale_of_k_s * scale
    weights_ts = exp(logits_ts + log(scale_of_v_s) - the largest of these sums over s), from 0 to 1
    out_t      = (round(127 weights_ts) . v8_s) / (127 * sum over s of weights_ts / scale_of_v_s)

Softmax is in float32. On CPUs rows are computed one by one, so that what is written between the products stays in the
cache: XLA computes attention in float32 as one program that never writes its logits, but takes no int32 into it. That
is why it pays little: by itself, on two cores with JAX 0.12 and 128 tokens, it is 1.1 to 1.6 times as fast as float32
in a batch with heads of 64, and 0.8 times with heads of 32 (`experiments/benchmarks/int8_products.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import LARGEST
from lepton_jax.models.backends import xla
from lepton_jax.models.backends.case import Case, Inputs

_LEAST = 1e-30  # a scale: what is all zero weighs next to nothing


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case, None if it can."""
    return case.beyond()


def attend(case: Case, inputs: Inputs, *, scale: float) -> jax.Array:
    """See `backends.attend`.

    Raises:
      UserError: it is differentiated; rounding has no gradient, and zeros would be taken for one.
    """
    return _attend(case, scale, inputs)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(case: Case, scale: float, inputs: Inputs) -> jax.Array:
    if case.platform != "cpu":
        return _rows(case, scale, inputs)
    return lax.map(partial(_rows, case, scale), Inputs(*(x[:, None] for x in inputs)))[:, 0]


@_attend.defjvp
def _refuse(case: Case, scale: float, primals: Any, tangents: Any) -> Any:
    del case, scale, primals, tangents
    raise UserError("model.attention='int8': it is for predictions, and has no gradient; train with 'auto'")


def _rows(case: Case, scale: float, inputs: Inputs) -> jax.Array:
    """Returns the attention of several rows at once."""
    (q_BxHxTxK, of_q), (k_BxHxTxK, of_k), (v_BxHxTxK, of_v) = (rounded(x.swapaxes(1, 2)) for x in inputs[:3])
    logits_BxHxTxT = products(q_BxHxTxK, k_BxHxTxK, 2).astype(jnp.float32) * (scale * of_q) * of_k.swapaxes(2, 3)
    seen = xla.visible(case, inputs.segments_BxT)
    weights_BxHxTxT, total_BxHxTx1 = weigh(logits_BxHxTxT, of_v.swapaxes(2, 3), seen)
    out_BxHxTxK = products(weights_BxHxTxT, v_BxHxTxK, 1).astype(jnp.float32) / total_BxHxTx1
    return out_BxHxTxK.swapaxes(1, 2).astype(inputs.q_BxTxHxK.dtype)


def rounded(x_BxHxTxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x as int8 [B, H, T, K] times float32 [B, H, T, 1]: of each token and head the largest value is 127."""
    x = x_BxHxTxK.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / LARGEST, _LEAST)
    return lax.round(x / scale, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int8), scale


def products(a_BxHxTxN: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Returns int32 [B, H, T, M], the sums of products of int8 over N.

    Args:
      a_BxHxTxN: int8.
      b: int8, [B, H, N, M] or [B, H, M, N].
      axis: that of N in a row and head of b, 1 or 2.
    """
    # Rows and heads become one axis: otherwise XLA moves what transposed them into the product, and computes it in
    # int32, several times slower.
    a, b = (x.reshape(-1, *x.shape[2:]) for x in (a_BxHxTxN, b))
    found = lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=jnp.int32)
    return found.reshape(*a_BxHxTxN.shape[:2], *found.shape[1:])


def weigh(
    logits_BxHxTxT: jax.Array, scale_of_v_BxHx1xT: jax.Array, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns int8 weights [B, H, T, T] from 0 to 127, and what their sums are divided by, float32 [B, H, T, 1].

    Args:
      logits_BxHxTxT, scale_of_v_BxHx1xT: float32; scales are positive.
      seen: see `xla.visible`. What is not seen has the weight 0, bit for bit; a query that sees nothing gets something
        finite.
    """
    shift = jnp.log(scale_of_v_BxHx1xT)
    if seen is not None:
        shift += jnp.where(seen, 0.0, -1e30)
    shifted = logits_BxHxTxT + shift
    weights = jnp.exp(shifted - jnp.max(shifted, axis=-1, keepdims=True))
    total_BxHxTx1 = LARGEST * jnp.sum(weights * (1 / scale_of_v_BxHx1xT), axis=-1, keepdims=True)
    return lax.round(LARGEST * weights, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int8), total_BxHxTx1
