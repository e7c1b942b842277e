"""The feed-forward layer, plain or gated."""

from __future__ import annotations

import flax.linen as nn
import jax

from lepton_jax.config import ModelConfig
from lepton_jax.models.layers import ACTIVATIONS, Linear


class FeedForward(nn.Module):
    """`down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        h_BxTxF = Linear(config, config.intermediate_size, config.bias, name="up")(x_BxTxD)
        if config.gated:
            h_BxTxF = activation(Linear(config, config.intermediate_size, config.bias, name="gate")(x_BxTxD)) * h_BxTxF
        else:
            h_BxTxF = activation(h_BxTxF)
        return Linear(config, config.hidden_size, config.bias, name="down")(h_BxTxF)
