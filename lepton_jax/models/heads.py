"""What stands on the encoder: heads for language models, for whole texts and for tokens, and the pooler."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.sharding import ROW_AXES, by_parts, constrain
from lepton_jax.core.weights import dot
from lepton_jax.models.layers import Dropout, Linear, Transform, weight


class LanguageModelHead(nn.Module):
    """Scores over the vocabulary, after dense, activation and norm (Devlin et al. 2018, arXiv:1810.04805, section A.2).

    `config.head_transform` says whether those come first, as in masked language models. With `config.tied_head` the
    scores are a product with the token embedding table, else with an own `kernel`.
    """

    config: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x_BxNxD: jax.Array, table: Any) -> jax.Array:
        """Returns the scores [B, N, V]; `table` is the embeddings', as `spread` gives it."""
        config = self.config
        size = config.embedding_size or config.hidden_size
        if config.head_transform:
            x_BxNxD = Transform(config, size, config.head_activation, norm=True, name="transform")(x_BxNxD)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (config.vocab_size,), jnp.float32) if config.output_bias else None
        if config.tied_head:
            logits = by_parts(lambda x, table: dot(x, table.T, bias), x_BxNxD, table, self.mesh)
        else:
            init = nn.initializers.truncated_normal(config.initializer_range)
            logits = dot(x_BxNxD, weight(self, "kernel", init, (x_BxNxD.shape[-1], config.vocab_size)), bias)
        split = self.mesh is not None and x_BxNxD.shape[1] % self.mesh.shape["sequence"] == 0
        return constrain(logits, self.mesh, ROW_AXES, "sequence" if split else None, "tensor")


class OutputHead(nn.Module):
    """Dropout and a linear layer: the classes of a text or of a token (one output in all for regression)."""

    config: ModelConfig
    num_outputs: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dropout(self.config.dropout, self.train)(x)
        return Linear(self.config, self.num_outputs, self.config.output_bias, name="output")(x)


class ReplacedTokenHead(nn.Module):
    """One score a token, positive where it seems replaced (Clark et al. 2020, arXiv:2003.10555, section 2)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        config = self.config
        transform = Transform(config, config.hidden_size, config.activation, norm=False, name="transform")
        return Linear(config, 1, config.output_bias, name="output")(transform(x_BxTxD))[:, :, 0]


def make_pooler(config: ModelConfig) -> Transform:
    """Returns the layer that the pooled vector passes (all vectors, for a token classifier's "transform")."""
    return Transform(config, config.hidden_size, config.pooler_activation, config.pooler == "transform", name="pooler")


def pool(x_BxTxD: jax.Array, segments_BxT: jax.Array, pooling: str) -> jax.Array:
    """Returns one vector a row, [B, D]: at the first position ("cls"), at the last one that is not padding ("last"),
    or the mean over all that are not padding."""
    if pooling == "cls":
        return x_BxTxD[:, 0]
    real_BxT = segments_BxT > 0
    if pooling == "last":
        last_B = jnp.max(jnp.where(real_BxT, jnp.arange(real_BxT.shape[1])[None, :], 0), axis=1)
        return jnp.take_along_axis(x_BxTxD, last_B[:, None, None], axis=1)[:, 0]
    real_BxTx1 = real_BxT.astype(jnp.float32)[:, :, None]
    total_BxD = jnp.sum(x_BxTxD.astype(jnp.float32) * real_BxTx1, axis=1)
    return (total_BxD / jnp.maximum(jnp.sum(real_BxTx1, axis=1), 1.0)).astype(x_BxTxD.dtype)


def pool_documents(x_BxTxD: jax.Array, segments_BxT: jax.Array, pooling: str, documents: int) -> jax.Array:
    """Returns one vector a document, [B, documents, D], as `pool` does for a row: of the positions that have the
    number 1, 2, ..., `documents` in `segments_BxT`. What it gives for a number that a row lacks means nothing."""
    member_BxSxT = segments_BxT[:, None, :] == jnp.arange(1, documents + 1)[None, :, None]
    if pooling == "mean":
        total_BxSxD = jnp.einsum("bst,btd->bsd", member_BxSxT.astype(jnp.float32), x_BxTxD.astype(jnp.float32))
        count_BxSx1 = jnp.sum(member_BxSxT, axis=-1, keepdims=True, dtype=jnp.float32)
        return (total_BxSxD / jnp.maximum(count_BxSx1, 1.0)).astype(x_BxTxD.dtype)
    position_T = jnp.arange(segments_BxT.shape[1])
    if pooling == "last":
        at_BxS = jnp.max(jnp.where(member_BxSxT, position_T, 0), axis=-1)
    else:
        at_BxS = jnp.min(jnp.where(member_BxSxT, position_T, position_T[-1]), axis=-1)
    return jnp.take_along_axis(x_BxTxD, at_BxS[:, :, None], axis=1)
