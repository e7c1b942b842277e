"""Classification of whole texts, or pairs of them, into one of several classes."""

from __future__ import annotations

import dataclasses

import jax

from lepton_jax.tasks.labelled import ClassTask
from lepton_jax.tasks.losses import correct, cross_entropy


@dataclasses.dataclass(frozen=True)
class Classification(ClassTask):
    """One class a text, by softmax cross-entropy."""

    def score(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `LabelledTask.score`; the metrics are `loss` and `accuracy`."""
        losses = cross_entropy(logits, labels, self.form)
        return losses, {"loss": losses, "accuracy": correct(logits, labels)}
