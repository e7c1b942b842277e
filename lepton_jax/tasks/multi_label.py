"""Classification of whole texts, or pairs of them, into any number of classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lepton_jax.tasks.labelled import ClassTask
from lepton_jax.tasks.losses import binary_cross_entropy


@dataclasses.dataclass(frozen=True)
class MultiLabel(ClassTask):
    """Each class by itself, by sigmoid cross-entropy, summed over the classes."""

    def score(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `LabelledTask.score`; the metrics are `loss` and `exact_match`, of all classes of a text."""
        losses = binary_cross_entropy(logits, labels, self.form)
        right = jnp.all((logits > 0) == (labels > 0), axis=-1).astype(jnp.float32)
        return losses, {"loss": losses, "exact_match": right}
