"""A weight is a pytree that knows how to multiply.

Modules multiply with `dot` and look rows up with `take`. Both accept a plain array or any `Weight`, so that
adaptation and compression map a parameter tree to a parameter tree and never fork a module. `dot` flattens the
leading axes before it multiplies: on CPU, XLA's backward pass of a [B, T, D] product otherwise reads transposed copies.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num


class Weight(abc.ABC):
    """A matrix [..., K, N] in some other form than one float array; a leading axis stacks layers."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the float array that this weight stands for."""

    @property
    @abc.abstractmethod
    def T(self) -> Weight:
        """The weight of the transposed matrix [..., N, K]."""

    @abc.abstractmethod
    def dot(self, x: Float[Array, "rows K"]) -> Float[Array, "rows N"]:
        """Returns x @ self in the dtype of x."""

    @abc.abstractmethod
    def take(self, ids: Int[Array, "..."]) -> Float[Array, "... N"]:
        """Returns the rows `ids` in float32."""

    @abc.abstractmethod
    def dense(self) -> Float[Array, "... K N"]:
        """Returns the float32 array that this weight stands for."""


LARGEST = 127.0  # of int8, on both sides of 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8(Weight):
    """Symmetric int8: `original ~= values * scale`, with `|error| <= scale / 2` and values in -127..127.

    `scale` is positive and has the rank of `values`, with size 1 on the axis that shares a scale:
    [..., 1, N] has one scale an output channel (kernels), [..., K, 1] one a row (embedding tables, whose
    transpose, the output projection of a tied head, then has one an output channel).

    What multiplies it is rounded to int8 as well, each row by its largest value; with a `step`, that of calibrated
    inputs, all by that one. With `smooth` (Xiao et al. 2022, arXiv:2211.10438, equation 3) inputs are divided by it
    first; `values` then stand for the original times `smooth`.

    Where `transposed`, `values` are [..., N, K]: a product reads them as they lie, with the axis it sums over last.
    XLA's product of few rows is faster so on CPUs, and it is what GPUs want.
    """

    values: Int[Array, "... K N"]
    scale: Float[Array, "... #K #N"]
    step: Float[Array, "... 1 1"] | None = None
    smooth: Float[Array, "... K 1"] | None = None
    transposed: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        *stack, rows, columns = self.values.shape
        return (*stack, columns, rows) if self.transposed else self.values.shape

    @property
    def T(self) -> Int8:
        if self.step is not None or self.smooth is not None:
            raise ValueError("Int8.T: is for tables; what was calibrated for one side does not serve the other")
        return Int8(self.values, jnp.swapaxes(self.scale, -1, -2), transposed=not self.transposed)

    @property
    def original(self) -> Int[Array, "... K N"]:
        """The values, as the matrix that they are."""
        return jnp.swapaxes(self.values, -1, -2) if self.transposed else self.values

    def dot(self, x: Float[Array, "rows K"]) -> Float[Array, "rows N"]:
        """Quantises x, multiplies int8 by int8 into int32, and scales back in float32.

        Raises:
          ValueError: the scales run along K, so they cannot be taken out of the sum over K.
        """
        if self.scale.shape[-2] != 1:
            raise ValueError(
                f"Int8.dot: scale {self.scale.shape} must have one entry an output channel of {self.shape}"
            )
        rows = self._quantize(x)
        # One row XLA multiplies in int32 on CPUs, after widening all of the matrix; two rows it multiplies in int8.
        alone = x.shape[0] == 1
        values = jnp.pad(rows.values, ((0, 1), (0, 0))) if alone else rows.values
        axes = ((1,), (int(self.transposed),)), ((), ())
        products = lax.dot_general(values, self.values, axes, preferred_element_type=jnp.int32)
        products = products[:1] if alone else products
        return (products.astype(jnp.float32) * rows.scale * self.scale).astype(x.dtype)

    def _quantize(self, x: Float[Array, "rows K"]) -> Int8:
        """Returns x in int8, with one scale a row, or one in all."""
        if self.step is None:
            # Without the barrier XLA fuses what made x (an erf, say) into both passes below and computes it twice.
            x = lax.optimization_barrier(x)
            return quantize(x if self.smooth is None else x.astype(jnp.float32) * (1 / self.smooth.T), axis=-1)
        divisor = self.step if self.smooth is None else self.step * self.smooth.T
        values = jnp.clip(x.astype(jnp.float32) * (1 / divisor), -LARGEST, LARGEST)
        return Int8(lax.round(values, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int8), self.step)

    def take(self, ids: Int[Array, "..."]) -> Float[Array, "... N"]:
        scale = self.scale[ids] if self.scale.shape[0] > 1 else self.scale.reshape((1,) * ids.ndim + (-1,))
        return self.original[ids].astype(jnp.float32) * scale

    def dense(self) -> Float[Array, "... K N"]:
        product = self.original.astype(jnp.float32) * self.scale
        return product if self.smooth is None else product / self.smooth


def lay_out(params: Any) -> Any:
    """Returns parameters whose int8 kernels are `transposed`, for predictions; what shares scales by rows stays."""

    def turn(weight: Any) -> Any:
        if not isinstance(weight, Int8) or weight.scale.shape[-2] != 1 or weight.transposed:
            return weight
        return dataclasses.replace(weight, values=jnp.swapaxes(weight.values, -1, -2), transposed=True)

    return jax.tree.map(turn, params, is_leaf=lambda node: isinstance(node, Weight))


def quantize(x: Float[Array, "..."], axis: int) -> Int8:
    """Rounds x to `Int8` with `scale = max |x| / 127` along `axis`; where x is all zero the scale is 1.

    Args:
      x: float array of rank >= 2, [..., K, N].
      axis: the axis that shares a scale: -2 for kernels, -1 for embedding tables and for tokens.
    """
    x = x.astype(jnp.float32)
    scale = shared_scale(x, axis)
    return Int8(lax.round(x / scale, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int8), scale)


def shared_scale(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Returns `max |x| / 127` along `axis`, which stays with size 1; where x is all zero 1."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    return jnp.where(largest > 0, largest / LARGEST, 1.0)


def dot(x: Float[Array, "... K"], w: Array | Weight, bias: Array | None = None) -> Float[Array, "... N"]:
    """Returns x @ w (+ bias) in the dtype of x.

    Args:
      x: [..., K].
      w: a float array [K, N] or a Weight of that shape.
      bias: [N], optional.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = w.dot(rows) if isinstance(w, Weight) else rows @ w.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)[None, :]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def take(table: Array | Weight, ids: Int[Array, "..."]) -> Num[Array, "... N"]:
    """Returns the rows `ids` of a table [K, N]: [..., N], float32 for a Weight, else in the table's dtype."""
    return table.take(ids) if isinstance(table, Weight) else jnp.take(table, ids, axis=0)
