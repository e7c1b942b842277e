"""How the inputs of int8 layers are rounded where that is decided beforehand, from texts: their step, and smoothing.

A step for all inputs of a layer (static quantisation) saves a pass over them, and needs to know their range. Three ways
to choose it: the largest magnitude seen; a percentile; or the bound with the least expected error, which is rounding
below it and clipping above (Banner et al. 2018, arXiv:1810.05723, section 3). That error is here the product's: a
channel's counts by its weights, for the few inputs that are clipped are often those that matter. `smooth` moves
outliers of channels from inputs into weights (SmoothQuant: Xiao et al. 2022, arXiv:2211.10438).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.core.observation import EDGES, Seen
from lepton_jax.core.weights import LARGEST

Bound = Literal["absmax", "percentile", "mse"]
# Inputs that come from a norm have outliers in the same channels at every token, and only these are smoothed, as in the
# paper (section 4); those of an activation have them at some tokens, where smoothing does harm.
_SMOOTHED = r"/(query|key|value|up|gate)/kernel$"
_SHARES = np.linspace(0.02, 1.0, 99)  # of the largest magnitude: the bounds that "mse" chooses from


class Inputs(NamedTuple):
    """How the inputs of a kernel [..., K, N] are rounded; see `core.weights.Int8`."""

    step: Any = None  # float32 [..., 1, 1]; None: each row by its largest value
    smooth: Any = None  # float32 [..., K, 1]; None: by nothing


def see_inputs(model: nn.Module, params: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Seen]:
    """Returns path of a linear layer's kernel -> the magnitudes of its inputs in batches.

    Args:
      model: a Transformer.
      params: its float parameters.
      batches: the model's arguments, by name. What is padding in them counts as well, so there should be none.
    """

    @jax.jit
    def see(params: Any, batch: Mapping[str, Any]) -> Any:
        return model.apply({"params": params}, **batch, mutable=["inputs"])[1]["inputs"]

    total: Any = None
    for batch in batches:
        new = see(params, batch)
        total = new if total is None else jax.tree.map(Seen.add, total, new, is_leaf=_is_seen)
    found = {}
    for path, seen in jax.tree_util.tree_leaves_with_path(total, is_leaf=_is_seen):
        name = trees.path_str(path)
        found[name] = seen.flat(trees.get(params, name).shape[:-2])
    return found


def calibrate(
    params: Any, seen: Mapping[str, Seen], bound: Bound | None, percentile: float = 99.99, smooth: float = 0.0
) -> dict[str, Inputs]:
    """Returns path of a kernel -> how its inputs are to be rounded.

    Args:
      params: float parameters.
      seen: of `see_inputs`.
      bound: how the step of a layer is chosen; None: inputs have no step.
      percentile: of the magnitudes of smoothed inputs, for the bound "percentile".
      smooth: the share of a channel's range that goes from inputs to weights, SmoothQuant's alpha; 0 is no smoothing.

    Raises:
      UserError: inputs or weights are not finite: no bound could be right.
    """
    found = {}
    for path, each in seen.items():
        kernel = np.asarray(trees.get(params, path), np.float64)  # [..., K, N]
        for what, array in (("weights", kernel), ("inputs, on the texts that they were observed on,", each.largest)):
            if not np.isfinite(array).all():
                raise UserError(f"{path}: its {what} are not all finite, so that they have no int8 form; train again, "
                                f"or leave the layer in float by compress.keep_float")  # fmt: skip
        largest, counts = np.asarray(each.largest, np.float64), np.asarray(each.counts, np.float64)
        factors = np.ones_like(largest)
        smoothed = smooth > 0 and re.search(_SMOOTHED, path) is not None
        if smoothed:
            ranges = np.abs(kernel).max(-1)
            factors = largest**smooth / np.maximum(ranges, 1e-12) ** (1 - smooth)
            factors = np.where((largest > 0) & (ranges > 0), factors, 1.0)
        step = None
        if bound is not None:
            weights = np.square(kernel * factors[..., None]).sum(-1)
            bounds = [
                _bound(largest[layer], counts[layer], factors[layer], weights[layer], bound, percentile)
                for layer in np.ndindex(largest.shape[:-1])
            ]
            bounds = np.reshape(bounds, (*largest.shape[:-1], 1, 1))
            step = jnp.asarray(np.where(bounds > 0, bounds / LARGEST, 1.0), jnp.float32)
        found[path] = Inputs(step, jnp.asarray(factors[..., None], jnp.float32) if smoothed else None)
    return found


def uncalibrated(shapes: Any, step: Iterable[str], smooth: Iterable[str]) -> dict[str, Inputs]:
    """Returns zeros in place of what `calibrate` would give the kernels of these paths, for their shapes."""
    step, smooth = set(step), set(smooth)

    def inputs(path: str) -> Inputs:
        *stack, size, _ = trees.get(shapes, path).shape
        return Inputs(
            jnp.zeros((*stack, 1, 1)) if path in step else None,
            jnp.zeros((*stack, size, 1)) if path in smooth else None,
        )

    return {path: inputs(path) for path in sorted(step | smooth)}


def _bound(
    largest: np.ndarray, counts: np.ndarray, factors: np.ndarray, weights: np.ndarray, kind: Bound, percentile: float
) -> float:
    """Returns the magnitude of inputs, divided by their channels' factors, that becomes 127.

    Args:
      largest, counts: of one `Seen`, [K] and [K, bins].
      factors: [K].
      weights: [K], what a squared error of a channel weighs.
      kind, percentile: see `calibrate`.
    """
    top = float((largest / factors).max())
    if kind == "absmax" or top == 0:
        return top
    centres = np.sqrt(EDGES[:-1] * EDGES[1:])[None, :] / factors[:, None]  # [K, bins]
    if kind == "percentile":
        order = np.argsort(centres, axis=None)
        reached = np.cumsum(counts.ravel()[order]) >= counts.sum() * percentile / 100
        return min(float(centres.ravel()[order][np.argmax(reached)]), top)
    bounds = top * _SHARES
    counts = counts * weights[:, None]
    errors = [(counts * np.where(centres <= c, (c / LARGEST) ** 2 / 12, (centres - c) ** 2)).sum() for c in bounds]
    return float(bounds[int(np.argmin(errors))])


def _is_seen(node: Any) -> bool:
    return isinstance(node, Seen)
