"""How a task applies the model to a batch, and which targets of packed texts there are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import rng as rngs
from lepton_jax.models.transformer import Transformer


def forward(
    model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array | None, train: bool, **options: Any
) -> Any:
    """Returns what the model says of a batch of `data.batches`.

    Args:
      model, params: the model and its parameters, of any form.
      batch: its tokens, documents, positions and token types count.
      rng: the key of the step, of which dropout takes its own stream; None where there is no training.
      train: whether dropout is active.
      **options: further arguments of the model, such as `packed`.
    """
    return model.apply(
        {"params": params},
        batch["token_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids"),
        positions=batch["positions"],
        train=train,
        rngs=None if rng is None else {"dropout": rngs.stream(rng, "dropout")},
        **options,
    )


def text_logits(
    model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array | None, train: bool, packed: bool
) -> jax.Array:
    """Returns the logits of a classification head, [B, C]; of each of S packed texts a row, [B, S, C]."""
    documents = batch["labels"].shape[1] if packed else None
    return forward(model, params, batch, rng, train, documents=documents, packed=packed)["logits"]


def text_weight(batch: dict[str, jax.Array], packed: bool) -> jax.Array:
    """Returns float32 [B], or [B, S] of packed texts: 1 for a text that counts, 0 for one that a row does not have."""
    if not packed:
        return batch["weight"]
    counts = jnp.max(batch["attention_mask"], axis=1)  # texts are numbered 1, 2, ...
    there = jnp.arange(batch["labels"].shape[1])[None, :] < counts[:, None]
    return there * batch["weight"][:, None]
