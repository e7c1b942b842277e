"""The layers everything else is made of: a linear map whose weight may take any form, norms, and their transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.config import ModelConfig
from lepton_jax.core.weights import dot

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "squared_relu": lambda x: jnp.square(nn.relu(x)),
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}


def weight(module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...]) -> Any:
    """Returns the parameter `name`: a float32 array where the module initialises, else whatever the tree holds.

    `module.param` would compare the tree's leaves with `init`'s shape and refuse a weight of another form.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, jnp.float32)


class Linear(nn.Module):
    """x_BxTxD -> x_BxTxF, with parameters `kernel` [D, F] and, unless `bias` is False, `bias` [F]."""

    config: ModelConfig
    features: int
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.truncated_normal(self.config.initializer_range)
        kernel = weight(self, "kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        return dot(x, kernel, bias)


class Transform(nn.Module):
    """Dense, activation and, if `norm`, a norm: what heads and poolers begin with."""

    config: ModelConfig
    features: int
    activation: str
    norm: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ACTIVATIONS[self.activation](Linear(self.config, self.features, self.config.head_bias, name="dense")(x))
        return make_norm(self.config, "norm")(x) if self.norm else x


def make_norm(config: ModelConfig, name: str) -> nn.Module:
    """Returns a layer norm or RMS norm over the last axis, computed in float32, in the dtype of the model."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
    return nn.LayerNorm(
        epsilon=config.norm_epsilon, use_bias=config.norm_bias, use_fast_variance=False, dtype=config.dtype, name=name
    )
