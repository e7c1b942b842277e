"""What stands on the encoder: the masked-LM head and the classification (or regression) head."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.config import ModelConfig
from lepton_jax.core.weights import dot
from lepton_jax.models.layers import ACTIVATIONS, Linear, make_norm, weight


class MaskedLMHead(nn.Module):
    """Dense, activation, norm, then scores over the vocabulary (Devlin et al. 2018, arXiv:1810.04805, section A.2).

    With `config.tied_head` the scores are a product with the token embedding table, else with an own `kernel`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxNxD: jax.Array, table: Any) -> jax.Array:
        config = self.config
        x_BxNxD = Linear(config, config.hidden_size, name="dense")(x_BxNxD)
        x_BxNxD = make_norm(config, "norm")(ACTIVATIONS[config.activation](x_BxNxD))
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32)
        if config.tied_head:
            return dot(x_BxNxD, table.T, bias)
        init = nn.initializers.truncated_normal(config.initializer_range)
        return dot(x_BxNxD, weight(self, "kernel", init, (config.hidden_size, config.vocab_size)), bias)


class ClassificationHead(nn.Module):
    """Pools a row, then dense, tanh, dropout and one output a class (one in all for regression)."""

    config: ModelConfig
    num_outputs: int
    train: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, segments_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (logits [B, C], pooled [B, D])."""
        config = self.config
        pooled_BxD = pool(x_BxTxD, segments_BxT, config.pooling)
        h_BxD = jnp.tanh(Linear(config, config.hidden_size, bias=True, name="dense")(pooled_BxD))
        h_BxD = nn.Dropout(config.dropout, deterministic=not self.train)(h_BxD)
        return Linear(config, self.num_outputs, bias=True, name="output")(h_BxD), pooled_BxD


def pool(x_BxTxD: jax.Array, segments_BxT: jax.Array, pooling: str) -> jax.Array:
    """Returns one vector a row: the first position ("cls"), or the mean over the positions that are not padding."""
    if pooling == "cls":
        return x_BxTxD[:, 0]
    real_BxTx1 = (segments_BxT > 0).astype(jnp.float32)[:, :, None]
    total_BxD = jnp.sum(x_BxTxD.astype(jnp.float32) * real_BxTx1, axis=1)
    return (total_BxD / jnp.maximum(jnp.sum(real_BxTx1, axis=1), 1.0)).astype(x_BxTxD.dtype)
