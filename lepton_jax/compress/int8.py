"""Post-training int8: weights rounded now, activations per token as they come (dynamic quantisation).

No data is needed: a kernel [.., K, N] gets one scale an output channel, an embedding table [V, D] one a row,
and `core.weights.Int8` scales each token by its own largest value when it multiplies. Norms and biases stay float.
The scheme is that of Jacob et al. 2017 (arXiv:1712.05877) without zero points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jax.core import trees
from lepton_jax.core.weights import quantize

# Pattern -> the axis that shares a scale. What matches none stays as it is.
_AXES = ((r"(^|/)kernel$", -2), (r"(^|/)embeddings/(token|position|type)$", -1), (r"", None))


def quantize_int8(params: Any, keep_float: Sequence[str] = ()) -> Any:
    """Maps float parameters to the tree in which kernels and embedding tables are `Int8`.

    Args:
      params: nested dicts of float arrays.
      keep_float: path patterns of weights that stay float.
    """

    def convert(path: str, leaf: Any) -> Any:
        axis = None if trees.matches(keep_float, path) else trees.first_match(_AXES, path)
        return leaf if axis is None else quantize(leaf, axis)

    return trees.map_with_path(convert, params)
