"""What the tasks with labels share: each says what its logits cost and how good they are, target by target."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.forward import forward
from lepton_jax.tasks.losses import PLAIN, ClassLoss, weighted_mean

Batch = dict[str, jax.Array]


class LabelledTask(abc.ABC):
    """A task with labels that people gave: of whole texts, or of pairs of them, unless it says otherwise.

    Attributes:
      num_outputs: of the head.
      packed: whether a row may hold several texts.
      head: the model's head that it trains.
    """

    num_outputs: int
    packed: bool
    head: Head = "classification"

    @abc.abstractmethod
    def score(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of each target, float32, and its metrics, `loss` among them.

        Args:
          logits: `[*n, num_outputs]`.
          labels: `[*n]`, or `[*n, num_outputs]` of sets of classes.
        """

    def logits(self, model: Transformer, params: Any, batch: Batch, rng: Any, train: bool, packed: bool) -> jax.Array:
        """Returns [B, num_outputs]; of each of S packed texts a row, [B, S, num_outputs]."""
        documents = batch["labels"].shape[1] if packed else None
        return forward(model, params, batch, rng, train, documents=documents, packed=packed)["logits"]

    def weight(self, batch: Batch) -> jax.Array:
        """Returns float32 `[*n]`: 1 for a target that counts, 0 for another, such as a text that a packed row lacks."""
        if not self.packed:
            return batch["weight"]
        counts = jnp.max(batch["attention_mask"], axis=1)  # texts are numbered 1, 2, ...
        there = jnp.arange(batch["labels"].shape[1])[None, :] < counts[:, None]
        return there * batch["weight"][:, None]

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        del length
        return 0

    def loss(
        self, model: Transformer, params: Any, batch: Batch, rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are the means of those of `score`, and `weight`, the number of targets."""
        losses, metrics = self.score(self.logits(model, params, batch, rng, train, self.packed), batch["labels"])
        weight = self.weight(batch)
        means = {name: weighted_mean(values, weight) for name, values in metrics.items()}
        return weighted_mean(losses, weight), means | {"weight": jnp.sum(weight)}

    def outputs(self, model: Transformer, params: Any, batch: Batch) -> jax.Array:
        """Returns what the head says of each row, float32 [B, num_outputs], or of each of its tokens, without dropout.

        Rows hold one text each. Scores come from `outputs * card.scale + card.offset`.
        """
        return self.logits(model, params, batch, None, False, packed=False).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ClassTask(LabelledTask):
    """One whose labels are classes."""

    num_outputs: int
    packed: bool = False
    form: ClassLoss = PLAIN
