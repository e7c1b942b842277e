"""AdamW, SGD and Muon against NumPy; what weight decay spares; clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.config import ModelConfig, OptimConfig
from lepton_jax.core import trees
from lepton_jax.models.transformer import Transformer, abstract_params
from lepton_jax.optim import make_optimizer

PARAMS = {"dense": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.asarray([3.0, -1.0])}}
DRAW = np.random.default_rng(0)
GRADS = [jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), PARAMS) for _ in range(3)]


def schedule(step):
    return 0.1 / (1.0 + step)


def run(config, grads, params=PARAMS, schedule=schedule):
    optimizer = make_optimizer(config, schedule, config.weight_decay)
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def leaves(tree):
    """Returns path -> float64 array."""
    found = {}
    trees.map_with_path(lambda path, leaf: found.update({path: np.asarray(leaf, np.float64)}), tree)
    return found


def zeros(tree):
    return {path: 0.0 * leaf for path, leaf in leaves(tree).items()}


def clipped(grads, norm):
    """Returns the gradients of one step as path -> array, scaled down to a global norm."""
    flat = leaves(grads)
    total = np.sqrt(sum((leaf**2).sum() for leaf in flat.values()))
    assert total > norm
    return {path: leaf * norm / total for path, leaf in flat.items()}


def test_adamw_equals_numpy():
    config = OptimConfig(beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.5, clip_norm=0.5)
    wanted, first, second = leaves(PARAMS), zeros(PARAMS), zeros(PARAMS)
    for step, grads in enumerate(GRADS):
        for path, grad in clipped(grads, 0.5).items():
            first[path] = 0.8 * first[path] + 0.2 * grad
            second[path] = 0.9 * second[path] + 0.1 * grad**2
            mean, variance = first[path] / (1 - 0.8 ** (step + 1)), second[path] / (1 - 0.9 ** (step + 1))
            decay = 0.0 if path.endswith("bias") else 0.5 * wanted[path]
            wanted[path] = wanted[path] - schedule(step) * (mean / (np.sqrt(variance) + 1e-3) + decay)
    for path, found in leaves(run(config, GRADS)).items():
        np.testing.assert_allclose(found, wanted[path], rtol=1e-5)


def test_sgd_with_momentum_equals_numpy():
    config = OptimConfig(name="sgd", momentum=0.8, weight_decay=0.5, clip_norm=0.5)
    wanted, trace = leaves(PARAMS), zeros(PARAMS)
    for step, grads in enumerate(GRADS):
        for path, grad in clipped(grads, 0.5).items():
            decay = 0.0 if path.endswith("bias") else 0.5 * wanted[path]
            trace[path] = 0.8 * trace[path] + grad + decay
            wanted[path] = wanted[path] - schedule(step) * trace[path]
    for path, found in leaves(run(config, GRADS)).items():
        np.testing.assert_allclose(found, wanted[path], rtol=1e-5)


def test_sgd_without_momentum_keeps_no_trace():
    with_trace, without = (
        make_optimizer(OptimConfig(name="sgd", momentum=momentum), schedule, 0.01).init(PARAMS)
        for momentum in (0.9, 0.0)
    )
    assert trees.count(with_trace) - trees.count(without) == trees.count(PARAMS)


STACK = {
    "embeddings": {"token": jnp.asarray(DRAW.normal(size=(7, 4)), jnp.float32)},
    "layers": {"up": {"kernel": jnp.asarray(DRAW.normal(size=(2, 4, 6)), jnp.float32), "bias": jnp.ones((2, 6))},
               "down": {"kernel": jnp.asarray(DRAW.normal(size=(2, 6, 4)), jnp.float32)}},
    "head": {"dense": {"kernel": jnp.asarray(DRAW.normal(size=(4, 4)), jnp.float32)}},
}  # fmt: skip


def newton_schulz(matrix):
    """Returns a matrix with its singular values near 1, by Jordan's five steps of X -> aX + (bA + cA^2)X, A = XX'."""
    x = matrix / np.linalg.norm(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_equals_numpy_layer_by_layer_and_leaves_the_rest_to_adam():
    grads = [jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), STACK) for _ in range(2)]
    config = OptimConfig(name="muon", momentum=0.9, beta1=0.8, beta2=0.9, weight_decay=0.5, clip_norm=0.0)
    wanted, first, second = leaves(STACK), zeros(STACK), zeros(STACK)
    for step, flat in enumerate(map(leaves, grads)):
        for path, grad in flat.items():
            muon = path in ("layers/up/kernel", "layers/down/kernel")
            beta = 0.9 if muon else 0.8
            first[path] = beta * first[path] + (1 - beta) * grad
            # Nesterov: the mean as it will be after the next gradient, if that is as this one.
            ahead = beta * first[path] / (1 - beta ** (step + 2)) + (1 - beta) * grad / (1 - beta ** (step + 1))
            if muon:
                direction = np.stack([newton_schulz(layer) for layer in ahead]) * 0.2 * np.sqrt(6)
            else:
                second[path] = 0.9 * second[path] + 0.1 * grad**2
                direction = ahead / (np.sqrt(second[path] / (1 - 0.9 ** (step + 1))) + 1e-8)
            decay = 0.0 if path.endswith("bias") else 0.5 * wanted[path]
            wanted[path] = wanted[path] - schedule(step) * (direction + decay)
    found = leaves(jax.jit(lambda params: run(config, grads, params))(STACK))
    for path, value in found.items():
        np.testing.assert_allclose(value, wanted[path], rtol=2e-4, atol=1e-5, err_msg=path)
    # A stack taken for one matrix, or Adam's rule for it, would be seen.
    whole = newton_schulz(leaves(grads[0])["layers/up/kernel"].reshape(8, 6)).reshape(2, 4, 6)
    apart = np.stack([newton_schulz(layer) for layer in leaves(grads[0])["layers/up/kernel"]])
    assert np.abs(whole - apart).max() > 0.1
    adam = jax.jit(lambda params: run(OptimConfig(weight_decay=0.5), grads, params))(STACK)
    assert np.abs(leaves(adam)["layers/up/kernel"]
                  - found["layers/up/kernel"]).max() > 1e-2  # fmt: skip


def test_a_step_of_muon_is_as_large_as_one_of_adam():
    """So that one learning rate serves both: by the root mean square of the first step of a wide layer."""
    params = {"layers": {"up": {"kernel": jnp.zeros((2, 64, 128))}}}
    grads = [jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), params)]
    config = OptimConfig(name="muon", clip_norm=0.0)
    step = leaves(run(config, grads, params, lambda _: 1.0))["layers/up/kernel"]
    assert 0.15 < np.sqrt((step**2).mean()) < 0.25


def test_muon_beside_frozen_parameters():
    """The optimizer sees a tree in which frozen ones are None."""
    free, _ = trees.split(STACK, trees.map_with_path(lambda path, _: "up" not in path, STACK))
    moved = run(OptimConfig(name="muon"), [jax.tree.map(jnp.ones_like, free)], free)
    assert jax.tree.structure(moved) == jax.tree.structure(free)
    assert all((leaves(moved)[path] != value).any() for path, value in leaves(free).items())


def test_every_setting_changes_the_result():
    changes = [{}, {"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 0.1}, {"weight_decay": 0.5}, {"clip_norm": 0.1}]
    changes += [{"name": "sgd", **change} for change in ({}, {"momentum": 0.1}, {"weight_decay": 0.5})]
    changes += [{"name": "muon", **change} for change in ({}, {"epsilon": 0.1}, {"weight_decay": 0.5})]
    results = {tuple(leaves(run(OptimConfig(**change), GRADS))["dense/kernel"].ravel()) for change in changes}
    assert len(results) == len(changes)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_decay_spares_biases_and_norms_of_the_encoder_and_nothing_else(name):
    """With a gradient of 0, decay alone moves a parameter: by rate * decay * value."""
    model = Transformer(
        ModelConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, positions="learned"),
        "classification",
        2,
    )
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract_params(model))
    flat = jax.tree.map(jnp.zeros_like, params)

    def moved(**change):
        config = OptimConfig(name=name, weight_decay=0.5, **change)
        return leaves(jax.jit(lambda params: run(config, [flat], params, lambda _: 0.1))(params))

    before, after, everything = leaves(params), moved(), moved(no_decay=())
    spared = {path for path in before if (before[path] == after[path]).all()}
    assert spared == {path for path in before if path.split("/")[-1] in ("bias", "scale")}
    assert {"embeddings/norm/scale", "layers/attention/query/bias", "head/output/bias"} <= spared
    for path in before.keys() - spared:
        np.testing.assert_allclose(after[path], before[path] * (1 - 0.1 * 0.5), rtol=1e-6)
    assert all((everything[path] != before[path]).all() for path in before)


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (4.0, 4.0), (100.0, 10.0), (0.0, 10.0)])
def test_the_global_norm_is_clipped(clip, norm):
    """A gradient of norm 10; SGD at rate 1 moves by what is left of it."""
    grads = {"dense": {"kernel": jnp.asarray([[6.0, 0.0], [0.0, 0.0]]), "bias": jnp.asarray([0.0, 8.0])}}
    config = OptimConfig(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=clip)
    moved = jax.tree.map(jnp.subtract, PARAMS, run(config, [grads], schedule=lambda _: 1.0))
    assert float(optax.tree.norm(moved)) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(moved["dense"]["bias"], [0.0, 0.8 * norm], atol=1e-5)
