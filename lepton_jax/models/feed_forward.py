"""The feed-forward layer, plain or gated."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.models.layers import ACTIVATIONS, Linear, together


class FeedForward(nn.Module):
    """`down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, mesh: Mesh | None = None) -> jax.Array:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        names = ("up", "gate") if config.gated else ("up",)
        layers = [Linear(config, config.intermediate_size, config.bias, name=name) for name in names]
        h_BxTxF, *gate_BxTxF = together(layers, x_BxTxD, mesh)
        h_BxTxF = activation(gate_BxTxF[0]) * h_BxTxF if config.gated else activation(h_BxTxF)
        down = Linear(config, config.hidden_size, config.bias, name="down")
        return together([down], h_BxTxF, mesh)[0]
