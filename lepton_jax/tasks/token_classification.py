"""Classification of tokens: the words of a text get classes such as B-PER, I-PER and O (see `data.spans`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import forward
from lepton_jax.tasks.losses import correct, cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class TokenClassification:
    """One class a token, by softmax cross-entropy; tokens with the label -1 do not count."""

    num_outputs: int
    packed: bool = False  # whether a row may hold several texts
    smoothing: float = 0.0
    gamma: float = 0.0  # of the focal loss
    weights: tuple[float, ...] | None = None  # of the classes

    head: Head = "token_classification"

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, `accuracy` and `weight`, the number of tokens with a label."""
        logits = forward(model, params, batch, rng, train, packed=self.packed)["logits"]
        weight = (batch["labels"] >= 0) * batch["weight"][:, None]
        labels = jnp.maximum(batch["labels"], 0)
        loss = weighted_mean(cross_entropy(logits, labels, self.smoothing, self.gamma, self.weights), weight)
        accuracy = weighted_mean(correct(logits, labels), weight)
        return loss, {"loss": loss, "accuracy": accuracy, "weight": jnp.sum(weight)}

    def outputs(self, model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """See `LabelledTask.outputs`: float32 logits [B, T, C] of unpacked rows."""
        return forward(model, params, batch, None, False, packed=False)["logits"].astype(jnp.float32)
