"""Parameter trees by path: names, ordered rules, masks, splits.

A path is the keys from the root joined by "/", for example `layers/attention/query/kernel`. Rules and
patterns are regular expressions searched anywhere in the path; of ordered rules the first match wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from lepton_jax.core.errors import UserError

T = TypeVar("T")


def path_str(path: tuple[Any, ...]) -> str:
    """Returns a key path of `jax.tree_util` as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def get(tree: Any, path: str) -> Any:
    """Returns the entry of nested dicts at a path."""
    for key in path.split("/"):
        tree = tree[key]
    return tree


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like `jax.tree.map`, with the path as the first argument of `fn`."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_str(path), *leaves), tree, *rest)


def first_match(rules: Sequence[tuple[str, T]], path: str) -> T:
    """Returns the value of the first rule whose pattern is found in `path`.

    Raises:
      UserError: no rule covers the path.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise UserError(f"parameter {path}: no rule covers it; patterns: {', '.join(pattern for pattern, _ in rules)}")


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether any of the patterns is found in `path`."""
    return any(re.search(pattern, path) for pattern in patterns)


def split(tree: Any, chosen: Any) -> tuple[Any, Any]:
    """Splits a tree in two of the same structure, with None where the other one holds the leaf.

    Args:
      tree: any pytree.
      chosen: a tree of bools with the same structure; of an array of them, any one counts.

    Returns:
      (leaves where `chosen` is True, the others); `merge` is the inverse.
    """
    return (
        jax.tree.map(lambda leaf, yes: leaf if np.any(yes) else None, tree, chosen),
        jax.tree.map(lambda leaf, yes: None if np.any(yes) else leaf, tree, chosen),
    )


def merge(first: Any, second: Any) -> Any:
    """Puts the two halves of `split` together again."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)


def count(tree: Any) -> int:
    """Returns the number of elements of all arrays in a tree (or of their shapes)."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """Returns the bytes that all arrays of a tree take."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
