"""Paths, ordered rules, and the split of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import trees
from lepton_jax.core.errors import UserError

TREE = {"layers": {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}, "norm": {"scale": jnp.ones(2)}}


def test_paths_join_the_keys_from_the_root():
    paths = []
    trees.map_with_path(lambda path, leaf: paths.append(path), TREE)
    assert sorted(paths) == ["layers/up/bias", "layers/up/kernel", "norm/scale"]


def test_the_first_matching_rule_wins():
    rules = (("up/kernel$", 1), ("kernel$", 2), ("", 3))
    assert [trees.first_match(rules, path) for path in ("layers/up/kernel", "down/kernel", "norm/scale")] == [1, 2, 3]


def test_an_uncovered_path_raises_and_names_it():
    with pytest.raises(UserError, match="norm/scale: no rule covers it"):
        trees.first_match((("kernel$", 1),), "norm/scale")


def test_split_and_merge_are_inverse():
    chosen = trees.map_with_path(lambda path, _: trees.matches(("kernel$", "scale$"), path), TREE)
    first, second = trees.split(TREE, chosen)
    assert first["layers"]["up"]["bias"] is None and second["layers"]["up"]["kernel"] is None
    assert trees.count(first) == 8 and trees.count(second) == 3
    merged = trees.merge(first, second)
    assert jax.tree.structure(merged) == jax.tree.structure(TREE)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, merged, TREE)))


def test_a_leaf_is_chosen_where_any_of_it_is():
    first, second = trees.split({"a": 1, "b": 2}, {"a": np.array([[False], [True]]), "b": np.array([False, False])})
    assert (first, second) == ({"a": 1, "b": None}, {"a": None, "b": 2})


def test_bytes_count_each_dtype():
    assert trees.num_bytes({"a": jnp.ones(3, jnp.int8), "b": jnp.ones((2, 2), jnp.bfloat16)}) == 3 + 8
