"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lepton_jax.config import TaskConfig
from lepton_jax.core import rng as rngs
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks import masks
from lepton_jax.tasks.forward import documents_of, forward
from lepton_jax.tasks.losses import correct, cross_entropy, weighted_mean


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predicts hidden tokens. The masks are drawn on the device, anew each step, from the step's key."""

    config: TaskConfig
    vocab_size: int  # of the tokenizer
    mask_id: int
    special: tuple[int, ...]  # distinct ids that are never predicted nor drawn
    word_starts: tuple[bool, ...] = ()  # of each token, whether it begins a word; for whole-word masks
    packed: bool = True  # whether a row may hold several documents that do not see each other

    head: Head = "masked_lm"
    num_outputs: int = 0

    def scored(self, length: int) -> int:
        """See `Task.scored`: the budget of predicted positions, the same for every row."""
        return math.ceil(self.config.mask_rate * length)

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`; the metrics are `loss`, `accuracy` and `weight`, the number of predicted positions."""
        masked = self.mask(rngs.stream(rng, "mask"), batch["token_ids"], documents_of(batch))
        inputs, predict, targets, weight = masked
        hidden = {**batch, "token_ids": inputs}
        out = forward(model, params, hidden, rng, train, predict=predict, packed=self.packed)
        weight = weight * batch["weight"][:, None]
        loss = weighted_mean(cross_entropy(out["logits"], targets), weight)
        accuracy = weighted_mean(correct(out["logits"], targets), weight)
        return loss, {"loss": loss, "accuracy": accuracy, "weight": jnp.sum(weight)}

    def mask(
        self, key: Key[Array, ""], token_ids: Int[Array, "rows length"], documents: Int[Array, "rows length"]
    ) -> tuple[Int[Array, "rows length"], Int[Array, "rows n"], Int[Array, "rows n"], Float[Array, "rows n"]]:
        """Chooses the positions to predict, and hides them.

        The budget n = ceil(mask_rate * length) is static, so that the head runs on [rows, n] positions and no more;
        `masks.choose` says how many of them a row uses. Each hidden token is replaced or kept on its own.

        Args:
          key: of the draw.
          token_ids: the true tokens.
          documents: the number of each token's document, 0 at padding; no word or span goes on into another one.

        Returns:
          (inputs with the chosen tokens hidden, chosen positions, their true tokens, weight 1 or 0 of each).
        """
        config = self.config
        rows, length = token_ids.shape
        budget = self.scored(length)
        ordinary = (documents > 0) & ~jnp.isin(token_ids, jnp.asarray(self.special))
        starts = None
        if config.mask_unit == "word":
            starts = masks.units(jnp.asarray(self.word_starts)[token_ids], ordinary, documents)
        elif config.mask_unit == "span":
            begins = masks.spans(rngs.stream(key, "spans"), (rows, length), config.span_length)
            starts = masks.units(begins, ordinary, documents)

        choose, replace, draw = (rngs.stream(key, name) for name in ("choose", "replace", "draw"))
        predict, weight = masks.choose(choose, ordinary, starts, config.mask_rate, budget)
        targets = jnp.take_along_axis(token_ids, predict, axis=1)

        fate = jax.random.uniform(replace, (rows, budget))
        random_ids = jax.random.randint(draw, (rows, budget), 0, self.vocab_size - len(self.special))
        for token in sorted(self.special):  # the k-th ordinary id, wherever the special ones are
            random_ids += random_ids >= token
        hidden = jnp.where(fate < config.mask_token_share + config.random_token_share, random_ids, targets)
        hidden = jnp.where(fate < config.mask_token_share, self.mask_id, hidden)
        hidden = jnp.where(weight > 0, hidden, targets)
        # `predict` names each position once, so the order of these writes does not matter.
        inputs = token_ids.at[jnp.arange(rows)[:, None], predict].set(hidden)
        return inputs, predict, targets, weight
