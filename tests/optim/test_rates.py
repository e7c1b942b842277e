"""Factors of the rate and gradual unfreezing: each layer of a stack learns as with an optimizer of its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.config import ModelConfig, OptimConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer, abstract_params, unstack
from lepton_jax.optim import layers, make_optimizer
from lepton_jax.optim.rates import factors

DRAW = np.random.default_rng(0)
QUERY = "attention/query/kernel"
MODEL = ModelConfig(
    vocab_size=16, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=8, relative=("c2p",), relative_span=4
)


def schedule(step):
    return 0.1 / (1.0 + step)


def random(shapes):
    return jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), shapes)


@functools.cache
def shapes(head="classification", **changes):
    return abstract_params(Transformer(dataclasses.replace(MODEL, **changes), head, 2))


PARAMS = random({
    "embeddings": {"token": np.ones((7, 4))},
    "layers": {"up": {"kernel": np.ones((3, 4, 6)), "bias": np.ones((3, 6))}, "norm": {"scale": np.ones((3, 4))}},
    "head": {"output": {"kernel": np.ones((4, 2)), "bias": np.ones(2)}},
})  # fmt: skip
GRADS = [random(PARAMS) for _ in range(4)]


def run(config, schedule=schedule, grads=GRADS, params=PARAMS):
    """Returns the parameters after each step, at the start first."""
    optimizer = make_optimizer(config, schedule, config.weight_decay)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state, history = optimizer.init(params), [params]
    for grad in grads:
        params, state = step(params, state, grad)
        history.append(params)
    return [leaves(each) for each in history]


def leaves(tree):
    """Returns path -> float64 array; a stack layer by layer, under the names of `unstack`."""
    tree = unstack(tree) if "layers" in tree else tree
    found = {}
    trees.map_with_path(lambda path, leaf: found.update({path: np.asarray(leaf, np.float64)}), tree)
    return found


def named(config, tree):
    """Returns name -> factor, one number each."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(factors(config, tree)):
        leaf = functools.reduce(lambda node, key: node[key.key], path, tree)
        for name, factor in zip(layers.names(trees.path_str(path), leaf), np.ravel(value), strict=True):
            found[name] = float(factor)
    return found


# --- which parameter has which factor


def test_the_factors_of_a_decay_over_three_layers():
    found = factors(OptimConfig(layer_decay=0.5), shapes())
    parts = {name: {tuple(np.ravel(leaf)) for leaf in jax.tree.leaves(part)} for name, part in found.items()}
    assert parts == {
        "embeddings": {(0.0625,)}, "relative": {(0.0625,)}, "layers": {(0.125, 0.25, 0.5)},
        "final_norm": {(1.0,)}, "pooler": {(1.0,)}, "head": {(1.0,)},
    }  # fmt: skip
    assert found["layers"]["attention"]["query"]["kernel"].shape == (3, 1, 1)
    assert found["layers"]["attention_norm"]["scale"].shape == (3, 1)
    assert found["embeddings"]["token"].shape == ()


def test_the_first_pattern_that_is_found_multiplies_the_decay():
    rates = (r"layers_1/.*kernel$=3", r"layers/attention/=10", "^head/=7", r"(?=embeddings)=0", "kernel$=5")
    found, decay = (named(OptimConfig(rates=each, layer_decay=0.5), shapes()) for each in (rates, ()))
    assert found.keys() == decay.keys()
    for name, factor in found.items():
        by = 1.0
        if name.startswith("layers_1/") and name.endswith("kernel"):
            by = 3.0
        elif "/attention/" in name:
            by = 10.0
        elif name.startswith("head/"):
            by = 7.0
        elif name.startswith("embeddings/"):
            by = 0.0
        elif name.endswith("kernel"):
            by = 5.0
        assert factor == by * decay[name], name
    assert {found[f"layers_{layer}/{QUERY}"] for layer in range(3)} == {1.25, 0.75, 5.0}


def test_a_tree_with_an_entry_a_layer_has_the_same_factors():
    config = OptimConfig(rates=("layers_2/=3", "bias=2"), layer_decay=0.7)
    apart = jax.eval_shape(unstack, shapes())
    assert "layers_2" in apart and named(config, apart) == named(config, shapes())


def test_layers_that_share_parameters_are_one():
    tree = shapes(num_layers=6, num_layer_groups=2)
    found = factors(OptimConfig(layer_decay=0.5, rates=("layers_0/shared/feed_forward/=8",)), tree)
    assert np.ravel(found["layers"]["shared"]["attention"]["query"]["kernel"]).tolist() == [0.25, 0.5]
    assert np.ravel(found["layers"]["shared"]["feed_forward"]["up"]["kernel"]).tolist() == [2.0, 0.5]
    assert found["embeddings"]["token"] == 0.125


def test_two_networks_in_one_tree_are_apart():
    tree = {"one": shapes(), "other": shapes("masked_lm", num_layers=1)}
    found = named(OptimConfig(layer_decay=0.5), tree)
    assert found[f"one/layers_2/{QUERY}"] == found[f"other/layers_0/{QUERY}"] == 0.5
    assert found["one/embeddings/token"] == 0.5**4 and found["other/embeddings/token"] == 0.5**2
    assert found["one/head/output/kernel"] == found["other/head/bias"] == 1.0


def test_layer_1_is_not_layer_11():
    tree = {"layers": {"bias": np.zeros((12, 3))}}
    found = np.ravel(factors(OptimConfig(rates=("layers_1/=2",)), tree)["layers"]["bias"])
    assert np.flatnonzero(found != 1).tolist() == [1]


# --- what an update becomes

RATES = OptimConfig(rates=("layers_0/up/=3", "layers_2/.*bias=0", "head/=0.5"), layer_decay=0.6, weight_decay=0.5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_each_layer_learns_as_with_an_optimizer_of_its_own_rate(name):
    """The plain optimizer, once for each factor, at that factor times the schedule."""
    config = dataclasses.replace(RATES, name=name, clip_norm=2.0)
    plain = dataclasses.replace(config, rates=(), layer_decay=1.0)
    wanted_factors, found = named(config, PARAMS), run(config)[-1]
    assert len(set(wanted_factors.values())) == 7
    for factor in set(wanted_factors.values()):
        wanted = run(plain, lambda step, factor=factor: factor * schedule(step))[-1]
        for path in (path for path, each in wanted_factors.items() if each == factor):
            np.testing.assert_allclose(found[path], wanted[path], rtol=2e-5, atol=1e-6, err_msg=path)
    free = run(plain)[-1]
    assert all(np.abs(found[path] - free[path]).max() > 1e-3 for path, each in wanted_factors.items() if each != 1)
    assert (found["layers_2/up/bias"] == leaves(PARAMS)["layers_2/up/bias"]).all()


def test_adamw_of_each_layer_apart_is_optax():
    config = dataclasses.replace(RATES, clip_norm=0.0)
    found, grads = run(config)[-1], [leaves(each) for each in GRADS]
    for path, start in leaves(PARAMS).items():
        factor = named(config, PARAMS)[path]
        decay = 0.0 if path.endswith(("bias", "scale")) else 0.5
        settings = (config.beta1, config.beta2, config.epsilon)
        own = optax.adamw(lambda step, by=factor: by * schedule(step), *settings, weight_decay=decay)
        value = jnp.asarray(start, jnp.float32)
        state = own.init(value)
        for grad in grads:
            updates, state = own.update(jnp.asarray(grad[path], jnp.float32), state, value)
            value = value + updates
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_without_rules_nothing_changes_and_no_state_is_kept(name):
    config = OptimConfig(name=name)
    ones = dataclasses.replace(config, rates=("layers/=1",))
    jax.tree.map(np.testing.assert_array_equal, run(config), run(ones))
    states = [jax.tree.leaves(make_optimizer(each, schedule, 0.01).init(PARAMS)) for each in (config, ones)]
    assert len(states[0]) == len(states[1])
    thawing = jax.tree.leaves(
        make_optimizer(dataclasses.replace(config, unfreeze=("head=1",)), schedule, 0.01).init(PARAMS)
    )
    assert len(thawing) == len(states[0]) + 1, "a count of its own"


UNFREEZE = ("layers_2/=1", "layers/=2", "embeddings/=3")


def test_a_value_moves_from_the_step_after_its_own_on_and_its_moments_are_complete():
    config = OptimConfig(unfreeze=UNFREEZE, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.5, clip_norm=0.0)
    history = run(config)
    starts = {path: 1 if path.startswith("layers_2/") else 2 if path.startswith("layers_") else
              3 if path.startswith("embeddings/") else 0 for path in history[0]}  # fmt: skip
    assert set(starts.values()) == {0, 1, 2, 3}
    for path, start in starts.items():
        value, first, second = history[0][path], 0.0, 0.0
        for step, grads in enumerate(map(leaves, GRADS)):
            first, second = 0.8 * first + 0.2 * grads[path], 0.9 * second + 0.1 * grads[path] ** 2
            mean, variance = first / (1 - 0.8 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
            decay = 0.0 if path.endswith(("bias", "scale")) else 0.5 * value
            if step >= start:  # steps are counted from 1: the step `start` itself, and all before it, change nothing
                value = value - schedule(step) * (mean / (np.sqrt(variance) + 1e-3) + decay)
            np.testing.assert_allclose(history[step + 1][path], value, rtol=1e-5, atol=1e-6, err_msg=path)
            assert (history[step + 1][path] == history[0][path]).all() == (step < start), (path, step)


def test_rates_and_unfreezing_together():
    both = dataclasses.replace(RATES, unfreeze=UNFREEZE, clip_norm=0.0)
    rates = dataclasses.replace(both, unfreeze=())
    found, wanted, start = run(both)[-1], run(rates), leaves(PARAMS)
    np.testing.assert_array_equal(found["head/output/kernel"], wanted[-1]["head/output/kernel"])
    moved = {path for path, value in found.items() if (value != start[path]).any()}
    assert moved == {path for path in found if path != "layers_2/up/bias"}
    assert (np.abs(found["layers_1/up/kernel"] - wanted[-1]["layers_1/up/kernel"]) > 1e-3).any()
    assert (run(both)[2]["layers_0/up/kernel"] == start["layers_0/up/kernel"]).all()


def test_beside_frozen_parameters():
    """The optimizer sees a tree in which frozen ones are None."""
    free, _ = trees.split(PARAMS, trees.map_with_path(lambda path, _: "up" not in path, PARAMS))
    config = OptimConfig(layer_decay=0.5, unfreeze=("layers_1/=1",))
    optimizer = make_optimizer(config, lambda step: 1.0, config.weight_decay)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, free), optimizer.init(free), free)
    assert jax.tree.structure(updates) == jax.tree.structure(free)
    sizes = np.abs(np.asarray(updates["layers"]["norm"]["scale"])).mean(1)
    np.testing.assert_allclose(sizes, [0.125, 0.0, 0.5], rtol=1e-3)


@pytest.mark.parametrize("field", ["rates", "unfreeze"])
@pytest.mark.parametrize("pattern", ["embedings", "layers_3/", "pooler"])
def test_a_pattern_that_matches_nothing_is_refused(field, pattern):
    optimizer = make_optimizer(OptimConfig(**{field: ("head/=1", f"{pattern}=2")}), schedule, 0.01)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(optimizer.init, PARAMS)
    assert str(caught.value) == (
        f"config.optim.{field}={pattern!r}: matches no parameter; there are embeddings/token, head/output/bias, "
        f"head/output/kernel, layers/norm/scale, layers/up/bias, layers/up/kernel; single layers are "
        f"layers_0/norm/scale, ..., layers_2/norm/scale"
    )
