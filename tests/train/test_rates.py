"""Rates, unfreezing and single frozen layers in the train step: on a mesh, over a checkpoint, past a bad batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import CheckpointConfig, OptimConfig, TrainConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.train.state import trainable

TRAIN = TrainConfig(learning_rate=0.03, steps=100)
PLAIN = OptimConfig(epsilon=1e-3, warmup_steps=4, weight_decay=0.1)
RATES = dataclasses.replace(
    PLAIN, rates=("layers_0/attention/=2", "^head/=0.5"), layer_decay=0.5, unfreeze=("layers_1/=1", "^embeddings/=2")
)


def apart(found):
    """Returns path -> array with the two layers of a stack under names of their own."""
    names = {}
    for path, value in found.items():
        if path.startswith("layers/"):
            names |= {path.replace("layers/", f"layers_{layer}/"): value[layer] for layer in range(2)}
        else:
            names[path] = value
    return names


def moved(setup, numbers, state):
    """Returns the names of what is no longer as it was at the start; a key's bias has a gradient of rounding alone."""
    before, after = (apart(numbers(each.params)) for each in (setup.start(), state))
    return {name for name in before if (before[name] != after[name]).any() and "key/bias" not in name}


def test_a_mesh_changes_neither_rates_nor_thawing(training, rows, numbers):
    """Per factor and step as on one device, where `tests/optim` compares them with an optimizer a layer."""
    batches = [rows(seed=seed) for seed in range(3)]
    one, many = (training("classification", shape, RATES, TRAIN) for shape in ("", "data=2,fsdp=2,tensor=2"))
    (state, history), (spread, other) = (setup.run(batches) for setup in (one, many))
    assert int(state.opt_state[-1].count) == int(spread.opt_state[-1].count) == 3
    wanted, found = numbers(state.params), numbers(spread.params)
    plain = numbers(training("classification", "", PLAIN, TRAIN).run(batches)[0].params)
    assert all(np.abs(wanted[path] - plain[path]).max() > 1e-4 for path in wanted if path.startswith(("layers", "emb")))
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=2e-6, err_msg=path)
    np.testing.assert_allclose([each["loss"] for each in other], [each["loss"] for each in history], rtol=1e-5)


def test_values_thaw_after_their_step_and_a_bad_batch_is_no_step(training, rows, numbers):
    setup = training("classification", "", RATES, TRAIN)
    bad = rows(seed=2)
    bad["weight"][3] = np.inf
    always = {name.split("/")[0] for name in moved(setup, numbers, setup.run([rows()])[0])}
    assert always == {"layers_0", "final_norm", "pooler", "head"}
    state, history = setup.run([rows(), bad, bad])
    assert history[-1]["skipped"] == 2 and state.opt_state[-1].count == 1
    assert {name.split("/")[0] for name in moved(setup, numbers, state)} == always
    for batches, thawed in (([rows(), bad, rows()], {"layers_1"}), ([rows()] * 3, {"layers_1", "embeddings"})):
        found = moved(setup, numbers, setup.run(batches)[0])
        assert {name.split("/")[0] for name in found} == always | thawed


def test_two_and_two_steps_equal_four(training, rows, numbers, tmp_path):
    setup = training("classification", "data=4,fsdp=2", RATES, TRAIN)
    batches = [rows(seed=seed) for seed in range(4)]
    wanted, half = numbers(setup.run(batches)[0]), setup.run(batches[:2])[0]
    assert int(half.opt_state[-1].count) == 2 and "embeddings/token" not in moved(setup, numbers, half)

    class Positions:
        kept = ()

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(2, half, Positions())
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        resumed = checkpoints.restore(2, setup.abstract)
    found = numbers(setup.run(batches[2:], resumed)[0])
    assert found.keys() == wanted.keys() and any(path.startswith("opt_state") and "count" in path for path in found)
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


# --- single layers of a stack that are frozen


def test_a_layer_that_is_frozen_keeps_its_bits_and_counts_in_no_norm(training, rows, numbers):
    frozen = dataclasses.replace(PLAIN, frozen=("^embeddings/", "layers_0/"), weight_decay=0.5, clip_norm=0.3)
    setup = training("classification", "", frozen, TRAIN)
    state, history = setup.run([rows(), rows(seed=1)])
    before, after = (apart(numbers(each.params)) for each in (setup.start(), state))
    kept = {name for name in before if name.startswith(("embeddings/", "layers_0/"))}
    assert {name for name in before if (before[name] == after[name]).all()} == kept and len(kept) > 10
    assert {name.split("/")[0] for name in moved(setup, numbers, state)} == {"layers_1", "final_norm", "pooler", "head"}

    batch = {name: jnp.asarray(value) for name, value in rows().items()}
    gradient = jax.jit(jax.grad(lambda p: setup.task.loss(setup.model, p, batch, jax.random.key(0))[0]))
    grads = apart(numbers(gradient(setup.start().params)))
    norms = [np.sqrt(sum((grads[name] ** 2).sum() for name in names)) for names in (before.keys() - kept, before)]
    assert norms[1] > 1.1 * norms[0]
    np.testing.assert_allclose(history[0]["gradient_norm"], norms[0], rtol=1e-5)
    # As when the layer is no part of the stack: the free ones alone, clipped together.
    params = setup.start().params
    free, grads = (
        {**part, "layers": jax.tree.map(lambda leaf: leaf[1:], part["layers"])}
        for part in (
            trees.split(jax.device_get(tree), trainable(frozen, params))[0] for tree in (params, gradient(params))
        )
    )
    update = jax.jit(lambda grads, free: setup.optimizer.update(grads, setup.optimizer.init(free), free)[0])
    updates = update(grads, free)
    first = apart(numbers(setup.run([rows()])[0].params))
    for path, update in numbers(updates["layers"]).items():
        name = f"layers_1/{path}"
        np.testing.assert_allclose(first[name] - before[name], update[0], atol=1e-7, err_msg=path)


def test_layers_that_are_all_frozen_are_split_off(training):
    config = OptimConfig(frozen=("layers_[01]/attention/", "layers_1/feed_forward/"))
    setup = training(optim=config)
    chosen = trainable(config, setup.abstract.params)
    assert chosen["layers"]["attention"]["query"]["kernel"] is False
    part = chosen["layers"]["feed_forward"]["up"]["kernel"]
    assert part.shape == (2, 1, 1) and part.ravel().tolist() == [True, False]
    assert chosen["layers"]["attention_norm"]["scale"] is True and chosen["embeddings"]["token"] is True
    paths = [trees.path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(setup.abstract.opt_state)]
    assert not any("layers/attention/" in path for path in paths)
    assert any("layers/feed_forward/up/kernel" in path for path in paths)


def test_a_layer_that_is_not_there_cannot_be_frozen(training):
    with pytest.raises(UserError, match=r"frozen='layers_2/': matches no parameter; .*single layers are layers_0/"):
        training(optim=OptimConfig(frozen=("layers_2/",))).state()
