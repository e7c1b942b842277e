"""Post-training int8: weights are rounded now, activations as they come.

A kernel [.., K, N] gets one scale an output channel, an embedding table [V, D] one a row, and `core.weights.Int8`
scales each token by its own largest value when it multiplies, so that no data are needed (dynamic quantisation). With
what `calibration` gives, a layer's inputs have one scale, or are smoothed, or both. Norms and biases stay float.
The scheme is that of Jacob et al. 2017 (arXiv:1712.05877) without zero points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lepton_jax.compress.calibration import Inputs
from lepton_jax.core import trees
from lepton_jax.core.weights import Int8, Weight, quantize

# Pattern -> the axis that shares a scale. What matches none stays as it is.
_AXES = ((r"(^|/)kernel$", -2), (r"(^|/)embeddings/(token|position|type)$", -1), (r"", None))


def quantize_int8(params: Any, keep_float: Sequence[str] = (), inputs: Mapping[str, Inputs] | None = None) -> Any:
    """Maps float parameters to the tree in which kernels and embedding tables are `Int8`.

    Args:
      params: nested dicts of float arrays.
      keep_float: path patterns of weights that stay float.
      inputs: path of a kernel -> how what it multiplies is rounded; others round each row by its largest value.
    """

    def make(leaf: Any, axis: int, own: Inputs) -> Int8:
        weight = quantize(leaf if own.smooth is None else leaf * own.smooth, axis)
        return dataclasses.replace(weight, step=own.step, smooth=own.smooth)

    return map_weights(make, params, keep_float, inputs)


def map_weights(
    make: Callable[[Any, int, Inputs], Weight],
    params: Any,
    keep_float: Sequence[str] = (),
    inputs: Mapping[str, Inputs] | None = None,
) -> Any:
    """Maps float parameters to the tree in which those that have an int8 form are what `make` makes of them.

    Args:
      make: takes a parameter, its axis that shares a scale, and how what it multiplies is rounded.
      params, keep_float, inputs: see `quantize_int8`.
    """

    def convert(path: str, leaf: Any) -> Any:
        axis = None if trees.matches(keep_float, path) else trees.first_match(_AXES, path)
        return leaf if axis is None else make(leaf, axis, (inputs or {}).get(path, Inputs()))

    return trees.map_with_path(convert, params)
