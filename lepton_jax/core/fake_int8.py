"""A float weight that multiplies as the `Int8` would that it is to become, and can be trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lepton_jax.core.weights import LARGEST, Weight, shared_scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeInt8(Weight):
    """A float32 matrix that is rounded whenever it multiplies, and what it multiplies as well, as by `Int8`.

    Its results are those of `quantize(original * smooth, axis)` with the same `step` and `smooth`: a product is one of
    whole numbers up to 127, here in float, which is exact up to sums of 2^24. Gradients go straight through the
    rounding, as if it were not there, at the point that was rounded to (Bengio et al. 2013, arXiv:1308.3432; Jacob et
    al. 2017, arXiv:1712.05877, section 3), and are 0 for inputs that a `step` clips (as in LSQ: Esser et al. 2019,
    arXiv:1902.08153). Scales, `step` and `smooth` are constants to them.
    """

    original: Float[Array, "... K N"]
    step: Float[Array, "... 1 1"] | None = None
    smooth: Float[Array, "... K 1"] | None = None
    axis: int = dataclasses.field(default=-2, metadata={"static": True})  # the one that shares a scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.original.shape

    @property
    def T(self) -> FakeInt8:
        if self.step is not None or self.smooth is not None:
            raise ValueError("FakeInt8.T: is for tables; what was calibrated for one side does not serve the other")
        return FakeInt8(jnp.swapaxes(self.original, -1, -2), axis=-3 - self.axis)

    def dot(self, x: Float[Array, "rows K"]) -> Float[Array, "rows N"]:
        """Rounds both, multiplies whole numbers in the dtype of x, and scales the sums in float32.

        Raises:
          ValueError: the scales run along K, so they cannot be taken out of the sum over K.
        """
        if self.axis != -2:
            raise ValueError(f"FakeInt8.dot: {self.shape} must have one scale an output channel, not one a row")
        # The backward pass rounds again, so that layers that share an input keep it once, not what each made of it.
        return jax.checkpoint(_product)(x, self)

    def take(self, ids: Int[Array, "..."]) -> Float[Array, "... N"]:
        if self.axis == -1:
            values, scale = _whole(self.original[ids])
            return values * scale
        return self.dense()[ids]

    def dense(self) -> Float[Array, "... K N"]:
        values, scale, smooth = _weights(self)
        return values * scale if smooth is None else values * scale / smooth


def _product(x: Float[Array, "rows K"], weight: FakeInt8) -> Float[Array, "rows N"]:
    values, scale, _ = _weights(weight)
    rows, row_scale = _inputs(x, weight)
    # Up to 127, whole numbers are exact in bfloat16, too.
    products = jnp.matmul(rows.astype(x.dtype), values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (products * row_scale * scale).astype(x.dtype)


def _weights(weight: FakeInt8) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the whole numbers of a weight, their scale, and `smooth`."""
    smooth = lax.stop_gradient(weight.smooth)
    values, scale = _whole(weight.original if smooth is None else weight.original * smooth, weight.axis)
    return values, scale, smooth


def _inputs(x: Float[Array, "rows K"], weight: FakeInt8) -> tuple[jax.Array, jax.Array]:
    """Returns the whole numbers of what a weight multiplies, and their scale."""
    step, smooth = lax.stop_gradient((weight.step, weight.smooth))
    x = x.astype(jnp.float32)
    if step is None:
        return _whole(x if smooth is None else x * (1 / smooth.T))
    divisor = step if smooth is None else step * smooth.T
    return _round(lax.clamp(-LARGEST, x * (1 / divisor), LARGEST)), step


def _whole(x: Float[Array, "..."], axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Returns x as whole numbers of one scale along `axis`, and that scale; see `quantize`."""
    scale = lax.stop_gradient(shared_scale(x, axis))
    return _round(x / scale), scale


@jax.custom_jvp
def _round(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


@_round.defjvp
def _straight_through(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _round(*primals), tangents[0]
