"""Attention in plain JAX: any device, any mask, any bias; memory grows with the square of the length.

Its gradient is written by hand. Autodiff keeps several arrays of the size of the logits and sums over their rows in the
backward pass; here the softmax's output alone is kept, and its gradient needs sums over rows of the output (Dao et al.
2022, arXiv:2205.14135, appendix B.2). Heads come before positions, which XLA multiplies faster on CPUs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.backends.case import Case, Inputs


def refuses(case: Case) -> str | None:
    """Returns why it cannot serve a case: it serves all."""
    del case
    return None


def attend(
    case: Case,
    inputs: Inputs,
    *,
    scale: float,
    bias_BxHxTxT: jax.Array | None = None,
    local: jax.Array | None = None,
) -> jax.Array:
    """See `backends.attend`; `local` is bool []: where it is False, the case's window is left out."""
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segments_BxT = inputs
    seen = visible(case, segments_BxT, local)
    q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = (x.swapaxes(1, 2) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
    return softmax_attention(scale, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, seen, bias_BxHxTxT).swapaxes(1, 2)


def visible(case: Case, segments_BxT: jax.Array, local: jax.Array | None = None) -> jax.Array | None:
    """Returns whether a query sees a key, bool [B or 1, 1, T or 1, T]; None: all do.

    Args:
      case, segments_BxT: see `attend`; padding sees all tokens of its row, so that what it gives is finite.
      local: see `attend`.
    """
    T, seen = case.length, None
    if case.rows == "padded":
        seen = segments_BxT[:, None, None, :] > 0
    elif case.rows == "packed":
        queries, keys = segments_BxT[:, None, :, None], segments_BxT[:, None, None, :]
        seen = ((queries == keys) | (queries == 0)) & (keys > 0)
    distance = (jnp.arange(T)[:, None] - jnp.arange(T)[None, :])[None, None]
    if case.causal:
        seen = both(seen, distance >= 0)
    if case.window is not None:
        near = jnp.abs(distance) <= case.window
        seen = both(seen, near if local is None else near | ~local)
    return seen


def both(seen: jax.Array | None, also: jax.Array) -> jax.Array:
    """Returns the conjunction of two masks, of which the first may be None: all."""
    return also if seen is None else seen & also


def softmax_weights(
    scale: float,
    q_BxHxTxK: jax.Array,
    k_BxHxSxK: jax.Array,
    seen_BxHxTxS: jax.Array | None,
    bias_BxHxTxS: jax.Array | None,
) -> jax.Array:
    """Returns what each query takes of each key, float32 [B, H, T, S]; see `softmax_attention`.

    The weights of a query sum to 1; of one that sees nothing they are all 0.
    """
    # Queries are scaled, not logits: on CPUs XLA would write the scale out as an array of their size.
    logits = jnp.einsum("bhtk,bhsk->bhts", scale * q_BxHxTxK, k_BxHxSxK, preferred_element_type=jnp.float32)
    if bias_BxHxTxS is not None:
        logits += bias_BxHxTxS
    if seen_BxHxTxS is not None:
        # Added, not selected: on CPUs XLA then computes all of this function as one program.
        logits += jnp.where(seen_BxHxTxS, 0.0, -jnp.inf)
    # Finite bounds, so that a row that sees nothing has weights of 0, not NaN.
    exponentials = jnp.exp(logits - jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), -1e30))
    return exponentials / jnp.maximum(jnp.sum(exponentials, axis=-1, keepdims=True), 1e-30)


def _forward(
    scale: float,
    q_BxHxTxK: jax.Array,
    k_BxHxSxK: jax.Array,
    v_BxHxSxK: jax.Array,
    seen_BxHxTxS: jax.Array | None,
    bias_BxHxTxS: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """Returns the output and what the backward pass needs."""
    weights_BxHxTxS = softmax_weights(scale, q_BxHxTxK, k_BxHxSxK, seen_BxHxTxS, bias_BxHxTxS).astype(v_BxHxSxK.dtype)
    out_BxHxTxK = jnp.einsum("bhts,bhsk->bhtk", weights_BxHxTxS, v_BxHxSxK)
    biased = None if bias_BxHxTxS is None else ()  # structure alone: no array is kept
    return out_BxHxTxK, (q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, weights_BxHxTxS, out_BxHxTxK, biased)


def _backward(scale: float, kept: Any, d_out_BxHxTxK: jax.Array) -> tuple[jax.Array | None, ...]:
    q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, weights_BxHxTxS, out_BxHxTxK, biased = kept
    d_weights = jnp.einsum("bhtk,bhsk->bhts", d_out_BxHxTxK, v_BxHxSxK, preferred_element_type=jnp.float32)
    # The mean of d_weights under the weights, as a sum over K in place of one over S.
    means_BxHxTx1 = jnp.sum(d_out_BxHxTxK.astype(jnp.float32) * out_BxHxTxK, axis=-1, keepdims=True)
    d_logits = weights_BxHxTxS * (d_weights - means_BxHxTx1)
    d_scaled = (scale * d_logits).astype(q_BxHxTxK.dtype)
    d_q = jnp.einsum("bhts,bhsk->bhtk", d_scaled, k_BxHxSxK)
    d_k = jnp.einsum("bhts,bhtk->bhsk", d_scaled, q_BxHxTxK)
    d_v = jnp.einsum("bhts,bhtk->bhsk", weights_BxHxTxS, d_out_BxHxTxK)
    return d_q, d_k, d_v, None, None if biased is None else d_logits


def softmax_attention(
    scale: float,
    q_BxHxTxK: jax.Array,
    k_BxHxSxK: jax.Array,
    v_BxHxSxK: jax.Array,
    seen_BxHxTxS: jax.Array | None,
    bias_BxHxTxS: jax.Array | None,
) -> jax.Array:
    """Softmax attention over the keys that are seen; a query that sees none has the output 0.

    Args:
      scale: of the products.
      q_BxHxTxK, k_BxHxSxK, v_BxHxSxK: queries, keys and values, any float dtype.
      seen_BxHxTxS: bool, whether a query sees a key; axes may have size 1 in place of B and H. None: all do.
      bias_BxHxTxS: float32, added to the scaled products.

    Returns:
      [B, H, T, K] in the dtype of q; logits and softmax are computed in float32.
    """
    return _forward(scale, q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, seen_BxHxTxS, bias_BxHxTxS)[0]


softmax_attention = jax.custom_vjp(softmax_attention, nondiff_argnums=(0,))
softmax_attention.defvjp(_forward, _backward)
