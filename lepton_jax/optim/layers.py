"""The layers of a stack by name, for path rules that treat them differently.

Layers are stacked on a leading axis, `layers/attention/query/kernel` [L, ...]. A pattern may name the whole stack by
that path, or one layer as `models.transformer.unstack` does, `layers_0/attention/query/kernel`. Layers that share their
parameters are one layer here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core import trees
from lepton_jax.core.errors import UserError

_STACK = re.compile(r"(?:^|/)layers(?=/)")


def names(path: str, leaf: Any) -> list[str]:
    """Returns the path of each layer of a stack; of any other parameter its own path."""
    stack = _STACK.search(path)
    if stack is None:
        return [path]
    return [f"{path[: stack.end()]}_{number}{path[stack.end() :]}" for number in range(leaf.shape[0])]


def find(pattern: str, path: str, name: str) -> bool:
    """Whether a pattern is found in the path of a parameter, or in the name that it has in `names`."""
    return re.search(pattern, name) is not None or re.search(pattern, path) is not None


def by_layer(function: Callable[[str], Any], path: str, leaf: Any) -> np.ndarray:
    """Returns `function(name)` of each layer, in the form that broadcasts: [L, 1, ...] of a stack, else []."""
    values = np.asarray([function(name) for name in names(path, leaf)])
    return values[0] if _STACK.search(path) is None else values.reshape(-1, *(1,) * (len(leaf.shape) - 1))


def require(patterns: Sequence[str], tree: Any, field: str) -> None:
    """Raises UserError where a pattern is found in no path of a tree; `field` is the config field it came from."""
    leaves = [(trees.path_str(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    for pattern in patterns:
        if not any(find(pattern, path, name) for path, leaf in leaves for name in names(path, leaf)):
            stacked = next((names(path, leaf) for path, leaf in leaves if _STACK.search(path)), [])
            single = f"; single layers are {stacked[0]}, ..., {stacked[-1]}" if stacked else ""
            there = ", ".join(path for path, _ in leaves)
            raise UserError(f"{field}={pattern!r}: matches no parameter; there are {there}{single}")
