"""Losses in float32, one value a target, and the weighted mean that every task takes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Softmax cross-entropy, in nats.

    Over a vocabulary the logits are the largest array of a step, so that passes over it count: with its gradient by
    hand, nothing is gathered from it or scattered into it, and the exponentials are computed once.
    """
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    own, others = _own_and_others(logits, labels)
    largest = jnp.maximum(own, others)
    exponentials = jnp.exp(logits.astype(jnp.float32) - largest[..., None])
    total = jnp.sum(exponentials, axis=-1)
    return jnp.log(total) + largest - own, (exponentials.astype(logits.dtype), total, labels)


def _cross_entropy_gradient(
    kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    exponentials, total, labels = kept
    softmax = exponentials.astype(jnp.float32) * (gradient / total)[..., None]
    both = jnp.where(_is_label(exponentials, labels), softmax - gradient[..., None], softmax)
    return both.astype(exponentials.dtype), None


cross_entropy = jax.custom_vjp(cross_entropy)
cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


def correct(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """1.0 where the label's logit is above all others, else 0.0: of equal logits none is a prediction.

    Maxima vectorise, and combine over shards of a vocabulary; an argmax does neither.
    """
    own, others = _own_and_others(logits, labels)
    return (own > others).astype(jnp.float32)


def _own_and_others(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the label's logit and the largest of the others, float32; what two losses share is computed once."""
    logits, chosen = logits.astype(jnp.float32), _is_label(logits, labels)
    return jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1), jnp.max(jnp.where(chosen, -jnp.inf, logits), axis=-1)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def binary_cross_entropy(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Sigmoid cross-entropy of each class against the rest, summed over classes, in nats."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(-1)


def squared_error(predictions: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(prediction - target)^2, whose weighted mean is the mean squared error."""
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


def weighted_mean(values: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, ""]:
    """sum(values * weight) / sum(weight); 0, with a gradient of 0, where the weights are all 0."""
    total = jnp.sum(weight)
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight) / jnp.where(total > 0, total, 1.0)
