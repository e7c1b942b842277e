"""From token ids to vectors, and the table that a tied head multiplies by."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.sharding import by_parts, spread
from lepton_jax.core.weights import take
from lepton_jax.models.layers import Linear, make_norm, weight


class Embeddings(nn.Module):
    """Token, learned-position and token-type embeddings, summed and normalised, in the hidden size.

    Parameters: `token` [V, E]; `position` [max_positions, E] if positions are learned; `type` [types, E] if any;
    `norm` if the model has one here; `project` [E, D] if the embeddings have a size of their own, else E = D.
    """

    config: ModelConfig
    mesh: Mesh | None = None

    def setup(self) -> None:
        config = self.config
        size = config.embedding_size or config.hidden_size
        init = nn.initializers.truncated_normal(config.initializer_range)
        self.token = weight(self, "token", init, (config.vocab_size, size))
        self.table = spread(self.token, self.mesh)  # that a tied head multiplies by, see `by_parts`
        if config.positions == "learned":
            self.position = weight(self, "position", init, (config.max_positions, size))
        if config.type_vocab_size:
            self.type = weight(self, "type", init, (config.type_vocab_size, size))
        if config.embedding_norm:
            self.norm = make_norm(config, "norm")
        if config.embedding_size:
            self.project = Linear(config, config.hidden_size, bias=True, name="project")

    def __call__(
        self, token_ids_BxT: jax.Array, positions_BxT: jax.Array, token_type_ids_BxT: jax.Array | None
    ) -> jax.Array:
        config = self.config
        x_BxTxE = by_parts(lambda ids, table: take(table, ids), token_ids_BxT, self.table, self.mesh)
        if config.positions == "learned":
            x_BxTxE = x_BxTxE + take(self.position, positions_BxT + config.position_offset)
        if config.type_vocab_size:
            types_BxT = jnp.zeros_like(token_ids_BxT) if token_type_ids_BxT is None else token_type_ids_BxT
            x_BxTxE = x_BxTxE + take(self.type, types_BxT)
        x_BxTxE = self.norm(x_BxTxE) if config.embedding_norm else x_BxTxE
        x_BxTxE = x_BxTxE.astype(config.dtype)
        return self.project(x_BxTxE) if config.embedding_size else x_BxTxE


def default_positions(token_ids_BxT: jax.Array, offset: int) -> jax.Array:
    """Returns int32 [B, T]: 0, 1, 2, ... in each row.

    With an offset, as in RoBERTa, the tokens that are not padding are counted, and padding, whose token id is
    offset - 1, has -1.
    """
    B, T = token_ids_BxT.shape
    if not offset:
        return jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))
    real_BxT = (token_ids_BxT != offset - 1).astype(jnp.int32)
    return jnp.cumsum(real_BxT, axis=1) * real_BxT - 1
