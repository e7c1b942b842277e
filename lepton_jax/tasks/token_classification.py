"""Classification of tokens: the words of a text get classes such as B-PER, I-PER and O (see `data.spans`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks.forward import forward
from lepton_jax.tasks.labelled import Batch, ClassTask
from lepton_jax.tasks.losses import correct, cross_entropy


@dataclasses.dataclass(frozen=True)
class TokenClassification(ClassTask):
    """One class a token, by softmax cross-entropy; tokens with the label -1 do not count."""

    head = "token_classification"

    def score(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `LabelledTask.score`; the metrics are `loss` and `accuracy`."""
        labels = jnp.maximum(labels, 0)
        losses = cross_entropy(logits, labels, self.form)
        return losses, {"loss": losses, "accuracy": correct(logits, labels)}

    def logits(self, model: Transformer, params: Any, batch: Batch, rng: Any, train: bool, packed: bool) -> jax.Array:
        """Returns [B, T, num_outputs]."""
        return forward(model, params, batch, rng, train, packed=packed)["logits"]

    def weight(self, batch: Batch) -> jax.Array:
        """Returns float32 [B, T]: 1 for a token that has a label."""
        return (batch["labels"] >= 0) * batch["weight"][:, None]
