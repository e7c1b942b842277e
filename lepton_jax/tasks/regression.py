"""Regression: one number a text."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.classification import apply_to_rows
from lepton_jax.tasks.losses import squared_error, weighted_mean


@dataclasses.dataclass(frozen=True)
class Regression:
    """One float label a row, by mean squared error."""

    num_outputs: int = 1
    head: Head = "classification"

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, the mean squared error, and `weight`, the number of rows."""
        predictions = apply_to_rows(model, params, batch, rng, train)[:, 0]
        loss = weighted_mean(squared_error(predictions, batch["labels"]), batch["weight"])
        return loss, {"loss": loss, "weight": jnp.sum(batch["weight"])}
