"""Causal language modelling: each token from those before it in its document (Radford et al. 2019, GPT-2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import documents_of, forward
from lepton_jax.tasks.losses import correct, cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predicts the next token of a document; its last token has none, even where it is followed by another document
    that sees it. The model must be causal."""

    packed: bool = True  # whether a row may hold several documents that do not see each other

    head: Head = "causal_lm"
    num_outputs: int = 0

    def scored(self, length: int) -> int:
        """See `Task.scored`: all of them, the last one for nothing, as length - 1 would not divide over a mesh."""
        return length

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, `accuracy` and `weight`, the number of predicted tokens."""
        documents = documents_of(batch)
        out = forward(model, params, batch, rng, train, packed=self.packed)
        targets = jnp.roll(batch["token_ids"], -1, axis=1)
        last = jnp.arange(documents.shape[1])[None, :] == documents.shape[1] - 1
        followed = (documents > 0) & (documents == jnp.roll(documents, -1, axis=1)) & ~last
        weight = followed * batch["weight"][:, None]
        loss = weighted_mean(cross_entropy(out["logits"], targets), weight)
        accuracy = weighted_mean(correct(out["logits"], targets), weight)
        return loss, {"loss": loss, "accuracy": accuracy, "weight": jnp.sum(weight)}
