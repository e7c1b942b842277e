"""Losses in float32, one value a target, and the weighted mean that every task takes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

_TINY = 1e-30  # below it a power of 1 - p would have no finite gradient


@dataclasses.dataclass(frozen=True)
class ClassLoss:
    """How the loss of classes differs from plain cross-entropy; the defaults do not.

    Attributes:
      smoothing: share of each target that all classes get alike (Szegedy et al. 2015, arXiv:1512.00567, section 7); of
        classes by themselves, how far it is drawn to 1/2.
      gamma: of the focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4): each class's term, or that of "applies"
        and "does not apply", is multiplied by (1 - p)^gamma of its probability p.
      weights: by which the loss is multiplied, for each class; None: 1.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    weights: tuple[float, ...] | None = None

    def term(self, logs: jax.Array) -> jax.Array:
        """Returns what log-probabilities cost."""
        if not self.gamma:
            return -logs
        # As -expm1, 1 - p is exact, and its power has a gradient, where p is 1 but for rounding.
        return -logs * jnp.maximum(-jnp.expm1(logs), _TINY) ** self.gamma


PLAIN = ClassLoss()


def cross_entropy(
    logits: Float[Array, "*n classes"], labels: Int[Array, "*n"], form: ClassLoss = PLAIN
) -> Float[Array, "*n"]:
    """Softmax cross-entropy, in nats."""
    if form == PLAIN:
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    terms = form.term(jax.nn.log_softmax(logits.astype(jnp.float32)))
    losses = jnp.take_along_axis(terms, labels[..., None], axis=-1)[..., 0]
    losses = (1 - form.smoothing) * losses + form.smoothing * terms.mean(-1)
    return losses if form.weights is None else losses * jnp.asarray(form.weights, jnp.float32)[labels]


def correct(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """1.0 where the label's logit is above all others, else 0.0: of equal logits none is a prediction.

    Counting vectorises, and adds over shards of a vocabulary; an argmax does neither.
    """
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    return (jnp.sum(logits >= own, axis=-1) == 1).astype(jnp.float32)


def binary_cross_entropy(
    logits: Float[Array, "*n classes"], targets: Float[Array, "*n classes"], form: ClassLoss = PLAIN
) -> Float[Array, "*n"]:
    """Sigmoid cross-entropy of each class by itself, summed over classes, in nats; a target is 1 where it applies."""
    logits, targets = logits.astype(jnp.float32), targets * (1 - form.smoothing) + form.smoothing / 2
    terms = targets * form.term(jax.nn.log_sigmoid(logits)) + (1 - targets) * form.term(jax.nn.log_sigmoid(-logits))
    if form.weights is not None:  # a product of matrices would round to fewer bits on GPUs and TPUs
        terms *= jnp.broadcast_to(jnp.asarray(form.weights, jnp.float32), terms.shape)
    return terms.sum(-1)


def balanced(targets: np.ndarray | Sequence[np.ndarray], num_classes: int) -> tuple[float, ...]:
    """Returns the weight of each class, n / (num_classes * its own n), by which rare classes count as much as others.

    Over the targets themselves their mean is 1, so that a loss is still a mean over targets. A class without any gets
    1.

    Args:
      targets: int classes, where -1 is none, as one array or several; or [n, num_classes] of 0 and 1.
      num_classes: how many there are.
    """
    if isinstance(targets, np.ndarray) and targets.ndim == 2:
        counts = targets.sum(0)
    else:
        known = np.concatenate([np.ravel(each) for each in targets]) if not isinstance(targets, np.ndarray) else targets
        counts = np.bincount(known[known >= 0], minlength=num_classes)
    total = counts.sum()
    return tuple(float(total / (num_classes * count)) if count else 1.0 for count in counts)


def squared_error(predictions: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(prediction - target)^2, whose weighted mean is the mean squared error."""
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


def weighted_mean(values: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, ""]:
    """sum(values * weight) / sum(weight); 0, with a gradient of 0, where the weights are all 0."""
    total = jnp.sum(weight)
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight) / jnp.where(total > 0, total, 1.0)
