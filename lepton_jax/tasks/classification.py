"""Classification of whole texts into one of several classes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core import rng as rngs
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.losses import binary_cross_entropy, correct, cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class Classification:
    """One label a row, by softmax cross-entropy or by one sigmoid a class."""

    num_outputs: int
    kind: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"

    head: Head = "classification"

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, `accuracy` and `weight`, the number of rows."""
        logits = apply_to_rows(model, params, batch, rng, train)
        losses = cross_entropy if self.kind == "cross_entropy" else binary_cross_entropy
        loss = weighted_mean(losses(logits, batch["labels"]), batch["weight"])
        accuracy = weighted_mean(correct(logits, batch["labels"]), batch["weight"])
        return loss, {"loss": loss, "accuracy": accuracy, "weight": jnp.sum(batch["weight"])}


def apply_to_rows(
    model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool
) -> jax.Array:
    """Returns the logits [B, num_outputs] of a batch of rows."""
    out: Any = model.apply(
        {"params": params},
        batch["token_ids"],
        batch["attention_mask"],
        positions=batch["positions"],
        train=train,
        rngs={"dropout": rngs.stream(rng, "dropout")},
    )
    return out["logits"]
