"""Classification of whole texts, or pairs of them, into one of several classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import text_logits, text_weight
from lepton_jax.tasks.losses import correct, cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class Classification:
    """One class a text, by softmax cross-entropy."""

    num_outputs: int
    packed: bool = False  # whether a row may hold several texts
    smoothing: float = 0.0
    gamma: float = 0.0  # of the focal loss
    weights: tuple[float, ...] | None = None  # of the classes

    head: Head = "classification"

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, `accuracy` and `weight`, the number of texts."""
        logits = text_logits(model, params, batch, rng, train, self.packed)
        weight = text_weight(batch, self.packed)
        losses = cross_entropy(logits, batch["labels"], self.smoothing, self.gamma, self.weights)
        loss = weighted_mean(losses, weight)
        accuracy = weighted_mean(correct(logits, batch["labels"]), weight)
        return loss, {"loss": loss, "accuracy": accuracy, "weight": jnp.sum(weight)}

    def outputs(self, model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """See `LabelledTask.outputs`: float32 logits [B, C] of unpacked rows."""
        return text_logits(model, params, batch, None, False, packed=False).astype(jnp.float32)
