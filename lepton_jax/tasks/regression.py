"""Regression: one number a text, or a pair of them."""

from __future__ import annotations

import dataclasses

import jax

from lepton_jax.tasks.labelled import LabelledTask
from lepton_jax.tasks.losses import squared_error


@dataclasses.dataclass(frozen=True)
class Regression(LabelledTask):
    """One number a text, by squared error.

    The model learns (label - offset) / scale, so that targets of any size suit its initial numbers and its rate.
    """

    offset: float = 0.0  # the mean of the training labels
    scale: float = 1.0  # their standard deviation
    packed: bool = False
    num_outputs: int = 1

    def score(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `LabelledTask.score`; the metric is `loss`, in the labels' own unit, squared."""
        errors = squared_error(logits[..., 0], (labels - self.offset) / self.scale)
        return errors, {"loss": errors * self.scale**2}
