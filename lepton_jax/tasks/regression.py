"""Regression: one number a text, or a pair of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import text_logits, text_weight
from lepton_jax.tasks.losses import squared_error, weighted_mean


@dataclasses.dataclass(frozen=True)
class Regression:
    """One number a text, by squared error.

    The model learns (label - offset) / scale, so that targets of any size suit its initial numbers and its rate.
    """

    offset: float = 0.0  # the mean of the training labels
    scale: float = 1.0  # their standard deviation
    packed: bool = False  # whether a row may hold several texts

    num_outputs: int = 1
    head: Head = "classification"

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, in the labels' own unit, squared, and `weight`."""
        predictions = text_logits(model, params, batch, rng, train, self.packed)[..., 0]
        weight = text_weight(batch, self.packed)
        loss = weighted_mean(squared_error(predictions, (batch["labels"] - self.offset) / self.scale), weight)
        return loss, {"loss": loss * self.scale**2, "weight": jnp.sum(weight)}

    def outputs(self, model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """See `LabelledTask.outputs`: float32 [B, 1] of unpacked rows, what the head gives before `scale`, `offset`."""
        return text_logits(model, params, batch, None, False, packed=False).astype(jnp.float32)
