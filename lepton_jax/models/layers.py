"""The layers everything else is made of: a linear map whose weight may take any form, norms, and their transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.observation import Seen, observe
from lepton_jax.core.weights import Weight, dot


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the share of a normal distribution below x (Hendrycks & Gimpel 2016, arXiv:1606.08415), in x's dtype.

    XLA's CPU programs spend as much on it as on a product. By the error function, in place of its complement, it is one
    polynomial; and the backward pass computes it again from x, which costs less than to write and read it.
    """
    return _gelu(x)[0]


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    return (wide * _normal_below(wide)).astype(x.dtype), x


def _gelu_gradient(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (1 / math.sqrt(2 * math.pi))
    return ((gradient.astype(jnp.float32) * (_normal_below(wide) + wide * density)).astype(x.dtype),)


def _normal_below(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + lax.erf(x * (1 / math.sqrt(2))))


gelu.defvjp(_gelu, _gelu_gradient)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
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
    def parameters(self, x: jax.Array) -> tuple[Any, jax.Array | None]:
        """Returns kernel and bias for an input, which is added to the collection "inputs" where that is asked for."""
        init = nn.initializers.truncated_normal(self.config.initializer_range)
        kernel = weight(self, "kernel", init, (x.shape[-1], self.features))
        if self.is_mutable_collection("inputs") and not self.is_initializing():
            self.sow("inputs", "kernel", observe(x), Seen.add, lambda: None)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        return kernel, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        return dot(x, *self.parameters(x))


def together(layers: Sequence[Linear], x_BxTxD: jax.Array, mesh: Mesh | None) -> list[jax.Array]:
    """Applies layers of equal shape to one input [B, T, D].

    Where their columns are spread over `tensor` they become one product: XLA otherwise adds up the gradient of x over
    the devices once a layer. Nor are B and T made one axis, as `dot` does: T may be spread over `sequence`.
    """
    pairs = [layer.parameters(x_BxTxD) for layer in layers]
    kernels = [kernel for kernel, _ in pairs]
    alone = mesh is None or mesh.shape["tensor"] == mesh.shape["sequence"] == 1
    if alone or any(isinstance(kernel, Weight) for kernel in kernels):
        rows = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])  # once, for the backward pass keeps what each of them gets
        return [dot(rows, *pair).reshape(*x_BxTxD.shape[:-1], -1) for pair in pairs]
    kernel_DxNxF = jnp.stack(kernels, axis=1).astype(x_BxTxD.dtype)
    ys = jnp.moveaxis(jnp.einsum("btd,dnf->btnf", x_BxTxD, kernel_DxNxF), 2, 0)
    return [
        y if bias is None else y + bias.astype(y.dtype)[None, None, :] for y, (_, bias) in zip(ys, pairs, strict=True)
    ]


class Dropout(nn.Module):
    """Sets each element to 0 with probability `rate`, and scales the others so that the mean stays (Srivastava et al.
    2014); nothing unless `active`. Draws from the stream "dropout".

    An element takes 16 random bits, so that the rate is rounded to a multiple of 2^-16 (and the scale goes by the
    rounded one): they are half of what a number of 32 bits costs, which on a CPU was a tenth of a train step.
    """

    rate: float
    active: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dropped = min(round(self.rate * 2**16), 2**16 - 1)
        if not self.active or not dropped:
            return x
        pairs = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
        bits = lax.bitcast_convert_type(pairs, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
        return jnp.where(bits >= dropped, x * (2**16 / (2**16 - dropped)), 0)


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
    return LayerNorm(config, name=name)


class LayerNorm(nn.Module):
    """`layer_norm` with parameters `scale` [D] and, if the model's norms have it, `bias` [D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32) if self.config.norm_bias else None
        return layer_norm(self.config.norm_epsilon, self.config.dtype, x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def layer_norm(epsilon: float, dtype: str, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450, equation 4), in float32.

    Its gradient is written by hand: autodiff keeps three float32 arrays of the size of x for it, where x is enough.

    Args:
      epsilon: added to the variance.
      dtype: of the result.
      x: [..., D], any float dtype.
      scale, bias: float32 [D]; a bias of None is 0.
    """
    return _layer_norm(epsilon, dtype, x, scale, bias)[0]


def _layer_norm(
    epsilon: float, dtype: str, x: jax.Array, scale: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Returns the result and what the backward pass needs."""
    mean = jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
    centred = x.astype(jnp.float32) - mean
    rate = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    rows = tuple(range(x.ndim - 1))
    out = centred * rate * jnp.expand_dims(scale, rows)
    out = out if bias is None else out + jnp.expand_dims(bias, rows)
    biased = None if bias is None else ()  # structure alone: no array is kept
    return out.astype(dtype), (x, mean, rate, scale, biased)


def _layer_norm_gradient(
    epsilon: float, dtype: str, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    del epsilon, dtype
    x, mean, rate, scale, biased = kept
    gradient, normed = gradient.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rate
    rows = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(gradient * normed, axis=rows)
    d_normed = gradient * jnp.expand_dims(scale, rows)
    means = [jnp.mean(part, axis=-1, keepdims=True) for part in (d_normed, d_normed * normed)]
    d_x = rate * (d_normed - means[0] - normed * means[1])
    return d_x.astype(x.dtype), d_scale, None if biased is None else jnp.sum(gradient, axis=rows)


layer_norm.defvjp(_layer_norm, _layer_norm_gradient)
