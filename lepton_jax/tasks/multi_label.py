"""Classification of whole texts, or pairs of them, into any number of classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import text_logits, text_weight
from lepton_jax.tasks.losses import binary_cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Each class by itself, by sigmoid cross-entropy, summed over the classes."""

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
        """See `Task.loss`; the metrics are `loss`, `exact_match` (of all classes of a text) and `weight`."""
        logits = text_logits(model, params, batch, rng, train, self.packed)
        weight = text_weight(batch, self.packed)
        losses = binary_cross_entropy(logits, batch["labels"], self.smoothing, self.gamma, self.weights)
        loss = weighted_mean(losses, weight)
        right = jnp.all((logits > 0) == (batch["labels"] > 0), axis=-1).astype(jnp.float32)
        return loss, {"loss": loss, "exact_match": weighted_mean(right, weight), "weight": jnp.sum(weight)}

    def outputs(self, model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """See `LabelledTask.outputs`: float32 logits [B, C] of unpacked rows."""
        return text_logits(model, params, batch, None, False, packed=False).astype(jnp.float32)
