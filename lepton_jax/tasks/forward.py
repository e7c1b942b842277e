"""How every task applies the model to a batch."""

from __future__ import annotations

from typing import Any

import jax

from lepton_jax.core import rng as rngs
from lepton_jax.models.transformer import Transformer


def documents_of(batch: dict[str, jax.Array]) -> jax.Array:
    """Returns int32 [B, T]: the number of each token's document in its row, whatever it sees; 0 at padding."""
    return batch.get("documents", batch["attention_mask"])


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
