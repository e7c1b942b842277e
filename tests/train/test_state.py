"""Where a state lies, what it holds, and what it starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import OptimConfig, TrainConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.train.state import trainable

QUERY = "params/layers/attention/query/kernel"


def shard_shapes(state):
    """Returns path -> the shape of one device's part of every leaf."""
    return {
        trees.path_str(path): leaf.sharding.shard_shape(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.mark.parametrize(
    ("shape", "query", "token"),
    [
        ("", (2, 16, 16), (64, 16)),
        ("data=8", (2, 16, 16), (64, 16)),
        ("fsdp=8", (2, 2, 16), (64, 2)),
        ("data=4,fsdp=2", (2, 8, 16), (64, 8)),
        ("data=2,fsdp=2,tensor=2", (2, 8, 8), (32, 8)),
    ],
)
def test_parameters_and_optimizer_state_lie_where_the_rules_say(training, shape, query, token):
    abstract = training(shape=shape).abstract
    shapes = shard_shapes(abstract)
    moments = [path for path in shapes if path.startswith("opt_state") and path.endswith(QUERY.removeprefix("params"))]
    assert len(moments) == 2
    for path in (QUERY, *moments):
        assert shapes[path] == query
    assert shapes["params/embeddings/token"] == token
    assert all(len(leaf.sharding.device_set) == (8 if shape else 1) for leaf in jax.tree.leaves(abstract))


def test_the_state_is_as_the_abstract_one_says_and_has_the_same_values_on_every_mesh(training, numbers):
    setups = training(), training(shape="data=2,fsdp=2,tensor=2")
    states = [setup.state() for setup in setups]
    for setup, state in zip(setups, states, strict=True):
        kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree) for tree in (setup.abstract, state)]
        assert kinds[0] == kinds[1]
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(setup.abstract))
    one, many = states
    assert shard_shapes(one)[QUERY] != shard_shapes(many)[QUERY]
    assert one.step.dtype == jnp.int32 and one.step == 0
    assert {part.data.shape for part in many.params["embeddings"]["token"].addressable_shards} == {(32, 8)}
    for path, value in numbers(one).items():
        np.testing.assert_allclose(numbers(many)[path], value, rtol=1e-6, atol=1e-7)


def test_the_seed_decides(training, numbers):
    first, again, other = (numbers(training(train=TrainConfig(seed=seed)).state()) for seed in (0, 0, 1))
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
    assert (first["rng"] != other["rng"]).any() and (first[QUERY] != other[QUERY]).any()


def test_a_parameter_that_does_not_divide_is_named(training):
    narrow = dataclasses.replace(training().config, hidden_size=12)
    with pytest.raises(UserError, match=r"params/embeddings/token has an axis of 12, which fsdp=8 does not divide"):
        _ = training(shape="fsdp=8", config=narrow).abstract


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_parameters_have_no_optimizer_state(training, name):
    """AdamW has two moments a parameter and two counts (its own and the schedule's), SGD a trace and one count."""
    per_parameter, counts = {"adamw": (2, 2), "sgd": (1, 1)}[name]
    frozen = (r"^embeddings/", r"attention/")
    free, some = (training(optim=OptimConfig(name=name, frozen=patterns)) for patterns in ((), frozen))
    every = len(jax.tree.leaves(free.abstract.params))
    chosen = trainable(some.optim, some.abstract.params)
    kept = sum(jax.tree.leaves(chosen))
    # Embeddings: the table and a norm of two; attention: four linear maps of two, but not its norm.
    assert every - kept == 3 + 8 and jax.tree.structure(chosen) == jax.tree.structure(some.abstract.params)
    assert len(jax.tree.leaves(free.abstract.opt_state)) == per_parameter * every + counts
    state = some.state()
    assert len(jax.tree.leaves(state.opt_state)) == per_parameter * kept + counts
    assert len(jax.tree.leaves(state.params)) == every


def test_a_frozen_pattern_that_matches_nothing_is_refused(training):
    setup = training(optim=OptimConfig(frozen=("embeddings/", "lyers/")))
    with pytest.raises(UserError, match=r"config\.optim\.frozen='lyers/': matches no parameter; there are embeddings/"):
        setup.state()


@pytest.mark.parametrize(
    ("task", "trained_on", "shape"),
    [("masked_lm", "", "data=8"), ("masked_lm", "fsdp=8", "fsdp=8"), ("classification", "", "")],
)
def test_starting_from_trained_parameters_takes_all_that_the_model_has_too(training, numbers, task, trained_on, shape):
    make_trained = training(task, trained_on, train=TrainConfig(seed=1)).start
    trained, before = make_trained().params, numbers(make_trained().params)
    if task == "masked_lm":  # another head, which whoever loads a model leaves out
        trained = {name: part for name, part in trained.items() if name != "head"}
    setup = training("classification", shape)
    state = setup.state(trained | {"generator": {"kernel": jnp.ones(2)}})
    found, fresh = numbers(state.params), numbers(setup.start().params)
    assert {"embeddings", "layers", "final_norm"} <= trained.keys() <= state.params.keys()
    assert (before["embeddings/token"] != fresh["embeddings/token"]).any()
    assert task == "masked_lm" or (before["head/output/kernel"] != fresh["head/output/kernel"]).any()
    for path, value in found.items():
        if path.split("/")[0] not in trained:
            np.testing.assert_allclose(value, fresh[path], atol=1e-7)
        else:
            np.testing.assert_array_equal(value, before[path])
    where = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (setup.abstract, state)]
    assert where[0] == where[1]


@pytest.mark.parametrize(("trained_on", "shape"), [("", ""), ("", "data=8"), ("fsdp=8", "fsdp=8")])
def test_a_donated_state_leaves_the_parameters_that_it_started_from(training, numbers, trained_on, shape):
    trained = training("classification", trained_on).start().params
    state = training("classification", shape).state(trained)
    jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert numbers(trained)["embeddings/token"].any()
