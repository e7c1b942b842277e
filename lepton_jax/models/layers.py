"""The two layers everything else is made of: a linear map whose weight may take any form, and a norm."""

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
    "relu": nn.relu,
    "silu": nn.silu,
}


def weight(module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...]) -> Any:
    """Returns the parameter `name`: a float32 array where the module initialises, else whatever the tree holds.

    `module.param` would compare the tree's leaves with `init`'s shape and refuse a weight of another form.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, jnp.float32)


class Linear(nn.Module):
    """x_BxTxD -> x_BxTxF, with parameters `kernel` [D, F] and, if the model has biases, `bias` [F]."""

    config: ModelConfig
    features: int
    bias: bool | None = None  # None: as the model's other layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.truncated_normal(self.config.initializer_range)
        kernel = weight(self, "kernel", init, (x.shape[-1], self.features))
        with_bias = self.config.bias if self.bias is None else self.bias
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if with_bias else None
        return dot(x, kernel, bias)


def make_norm(config: ModelConfig, name: str) -> nn.Module:
    """Returns a layer norm or RMS norm over the last axis, computed in float32, in the dtype of the model."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
    return nn.LayerNorm(
        epsilon=config.norm_epsilon, use_bias=config.bias, use_fast_variance=False, dtype=config.dtype, name=name
    )
