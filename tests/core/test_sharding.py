"""Meshes from text, and placement by path rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("data=-1", (8, 1, 1, 1)),
        ("", None),
        ("data=2,fsdp=4", (2, 4, 1, 1)),
        ("fsdp=-1, tensor=2", (1, 4, 2, 1)),
        ("data=2,fsdp=2,tensor=2", (2, 2, 2, 1)),
        ("data=2,sequence=-1", (2, 1, 1, 4)),
    ],
)
def test_mesh_shapes(shape, sizes):
    if sizes is None:
        with pytest.raises(UserError, match="must multiply to the 8 devices"):
            sharding.make_mesh(shape)
    else:
        assert tuple(sharding.make_mesh(shape).shape.values()) == sizes


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("dta=8", r'unknown axis \'dta\'; did you mean "data"\?'),
        ("data=x", "data needs a positive size or -1"),
        ("data=0", "data needs a positive size or -1"),
        ("data=3", "must multiply to the 8 devices"),
        ("data=3,fsdp=-1", "must multiply to the 8 devices"),
        ("data=-1,fsdp=-1", "only one axis may be -1, not data and fsdp"),
    ],
)
def test_bad_mesh_shapes(shape, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(shape)


def test_rules_are_aligned_with_the_last_axes():
    mesh = sharding.make_mesh("fsdp=4,tensor=2")
    rules = (("kernel", ("fsdp", "tensor")), ("", (None,)))
    tree = {
        "one": {"kernel": jnp.ones((8, 4))},
        "stack": {"kernel": jnp.ones((3, 8, 4))},
        "norm": jnp.ones((3, 8)),
        "count": jnp.ones(()),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.shardings(tree, mesh, rules))
    assert specs == {
        "one": {"kernel": P("fsdp", "tensor")},
        "stack": {"kernel": P(None, "fsdp", "tensor")},
        "norm": P(None, None),
        "count": P(),
    }


def test_axes_of_size_one_are_replicated():
    mesh = sharding.make_mesh("fsdp=4,tensor=2")
    found = sharding.shardings({"scale": jnp.ones((1, 4))}, mesh, (("", ("fsdp", "tensor")),))
    assert found["scale"].spec == P(None, "tensor")


def test_an_axis_that_does_not_divide_is_named():
    mesh = sharding.make_mesh("fsdp=4,tensor=2")
    with pytest.raises(UserError, match="up/kernel has an axis of 6, which fsdp=4 does not divide"):
        sharding.shardings({"up": {"kernel": jnp.ones((6, 2))}}, mesh, (("", ("fsdp", "tensor")),))


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    batch = sharding.put_batch({"x": np.arange(8).reshape(4, 2)}, mesh)
    assert sharding.row_shards(mesh) == 4
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(batch["x"], np.arange(8).reshape(4, 2))


class Split:
    """A sharding of rows over devices of several processes, as `by_rows` would give it there."""

    def __init__(self, *owners):
        self._owners = owners

    def devices_indices_map(self, shape):
        size = shape[0] // len(self._owners)
        return {
            Device(owner, (number, copy)): (slice(number * size, (number + 1) * size),)
            for number, owners in enumerate(self._owners)
            for copy, owner in enumerate(owners)
        }


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    place: tuple[int, int]


@pytest.mark.parametrize(
    ("owners", "parts"),
    [
        ([[0], [0], [1], [1]], [slice(0, 4), slice(4, 8)]),
        ([[0, 0], [1, 1]], [slice(0, 4), slice(4, 8)]),  # a tensor axis within a process
        ([[0, 1], [2, 3]], [slice(0, 4), slice(0, 4), slice(4, 8), slice(4, 8)]),  # and over two
        ([[0, 1]], [slice(0, 8), slice(0, 8)]),
    ],
)
def test_the_rows_of_each_process(monkeypatch, owners, parts):
    monkeypatch.setattr(sharding, "by_rows", lambda mesh: Split(*owners))
    assert sharding.process_rows(None, 8) == parts


def test_rows_that_are_not_consecutive_are_refused(monkeypatch):
    monkeypatch.setattr(sharding, "by_rows", lambda mesh: Split([0], [1], [0], [1]))
    with pytest.raises(UserError, match=r"process 0 would hold the rows \[\(0, 2\), \(4, 6\)\] of a batch, not consec"):
        sharding.process_rows(None, 8)


def test_one_process_holds_all_rows():
    assert sharding.process_rows(sharding.make_mesh("data=2,fsdp=2,tensor=2"), 8) == [slice(0, 8)]
