"""Losses in float32, one value a target, and the weighted mean that every task takes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Softmax cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def correct(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """1.0 where the label's logit is above all others, else 0.0: of equal logits none is a prediction.

    Counting vectorises, and adds over shards of a vocabulary; an argmax does neither.
    """
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    return (jnp.sum(logits >= own, axis=-1) == 1).astype(jnp.float32)


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
