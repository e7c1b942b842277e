"""From token ids to vectors, and the table that a tied head multiplies by."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.config import ModelConfig
from lepton_jax.core.weights import take
from lepton_jax.models.layers import make_norm, weight


class Embeddings(nn.Module):
    """Token, learned-position and token-type embeddings, summed and normalised.

    Parameters: `token` [V, D]; `position` [max_positions, D] if positions are learned; `type` [types, D] if any.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.truncated_normal(config.initializer_range)
        self.token = weight(self, "token", init, (config.vocab_size, config.hidden_size))
        if config.positions == "learned":
            self.position = weight(self, "position", init, (config.max_positions, config.hidden_size))
        if config.type_vocab_size:
            self.type = weight(self, "type", init, (config.type_vocab_size, config.hidden_size))
        self.norm = make_norm(config, "norm")

    def __call__(
        self, token_ids_BxT: jax.Array, positions_BxT: jax.Array, token_type_ids_BxT: jax.Array | None
    ) -> jax.Array:
        x_BxTxD = take(self.token, token_ids_BxT)
        if self.config.positions == "learned":
            x_BxTxD = x_BxTxD + take(self.position, positions_BxT)
        if self.config.type_vocab_size:
            types_BxT = jnp.zeros_like(token_ids_BxT) if token_type_ids_BxT is None else token_type_ids_BxT
            x_BxTxD = x_BxTxD + take(self.type, types_BxT)
        return self.norm(x_BxTxD)

    def table(self) -> Any:
        """Returns the token embedding table [V, D], an array or a Weight."""
        return self.token
