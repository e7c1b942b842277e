"""The train step: the same on every mesh and in every number of parts; frozen parameters; what jit promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import OptimConfig, TrainConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding
from lepton_jax.train.step import jit_train_step, mean_gradients

# A larger epsilon than in training: it divides, so that a gradient of 0 plus rounding moves nothing.
STABLE = OptimConfig(epsilon=1e-3, warmup_steps=4)
TRAIN = TrainConfig(learning_rate=0.03, steps=100)
SETTINGS = {"optim": STABLE, "train": TRAIN}
MESHES = {  # and the part of a stack of query kernels that a device has
    "data=8": (2, 16, 16), "fsdp=8": (2, 2, 16), "fsdp=4,tensor=2": (2, 4, 8), "data=2,fsdp=2,tensor=2": (2, 8, 8),
    "fsdp=2,tensor=2,sequence=2": (2, 8, 8), "data=2,sequence=4": (2, 16, 16),
}  # fmt: skip
QUERY = "layers/attention/query/kernel"


def difference(first, second):
    """Returns path -> largest absolute difference."""
    assert first.keys() == second.keys()
    return {path: float(np.abs(first[path].astype(float) - second[path]).max()) for path in first}


@pytest.fixture(scope="module")
def on_one_device(training, rows, numbers):
    """Returns task -> (parameters after two steps on one device, metrics)."""
    found = {}
    for name in ("masked_lm", "classification"):
        setup = training(name, **SETTINGS)
        before = numbers(setup.start().params)
        state, history = setup.run([rows(), rows(seed=1)])
        after = numbers(state.params)
        # What is compared must have moved, by much more than the tolerance; a key's bias has no gradient.
        moved = difference(before, after)
        assert all(value > 1e-4 for path, value in moved.items() if "key/bias" not in path), moved
        found[name] = after, history
    return found


@pytest.mark.parametrize(
    ("shape", "name"), [*((shape, "masked_lm") for shape in MESHES), ("fsdp=2,tensor=2,sequence=2", "classification")]
)
def test_a_mesh_changes_neither_loss_nor_parameters(training, rows, numbers, on_one_device, shape, name):
    setup = training(name, shape, **SETTINGS)
    state, batch = setup.start(), setup.put(rows())
    query = state.params["layers"]["attention"]["query"]["kernel"]
    assert len(query.sharding.device_set) == 8
    assert {part.data.shape for part in query.addressable_shards} == {MESHES[shape]}
    assert len({str(part.index) for part in batch["token_ids"].addressable_shards}) == sharding.row_shards(setup.mesh)

    state, history = setup.run([rows(), rows(seed=1)], state)
    params, expected = on_one_device[name]
    assert [each["weight"] for each in history] == [each["weight"] for each in expected]
    for each, one in zip(history, expected, strict=True):
        np.testing.assert_allclose(list(each.values()), [one[metric] for metric in each], rtol=2e-5)
    for path, value in numbers(state.params).items():
        np.testing.assert_allclose(value, params[path], atol=2e-6, err_msg=path)
    where = jax.tree.map(lambda leaf: leaf.sharding, (state, setup.abstract))
    assert where[0] == where[1]


def test_muon_on_a_mesh_is_muon_on_one_device(training, rows, numbers):
    """A matrix that lies on four devices is made orthogonal as a whole."""
    muon = dataclasses.replace(STABLE, name="muon")
    setups = [training("classification", shape, optim=muon, train=TRAIN) for shape in ("", "fsdp=2,tensor=2,data=2")]
    states, before = [setup.run([rows()])[0] for setup in setups], numbers(setups[0].start().params)
    one, spread = (numbers(state.params) for state in states)
    adam = numbers(training("classification", **SETTINGS).run([rows()])[0].params)
    assert difference(before, one)[QUERY] > 1e-3 and difference(adam, one)[QUERY] > 1e-3
    for path, value in spread.items():
        np.testing.assert_allclose(value, one[path], atol=5e-6, err_msg=path)


def test_a_masked_row_and_a_filler_row_weigh_nothing(training, rows, on_one_device):
    assert on_one_device["classification"][1][0]["weight"] == 7
    weights = [each["weight"] for each in on_one_device["masked_lm"][1]]
    assert all(0 < weight <= 3 * 6 for weight in weights), "12 positions at most give 3; two rows give none"


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(training, rows, numbers, parts):
    """Around it, two good batches do what they would have done one after the other."""
    setup = training("classification", optim=STABLE, train=dataclasses.replace(TRAIN, accumulate=parts))
    good, bad, other = rows(), rows(seed=2), rows(seed=1)
    bad["weight"][3] = np.inf
    state, (first, broken) = setup.run([good, bad])
    assert np.isfinite(first["loss"]) and not np.isfinite(broken["loss"])
    assert (first["skipped"], broken["skipped"], int(state.skipped), int(state.step)) == (0, 1, 1, 2)
    after_good, _ = setup.run([good])
    for part in ("params", "opt_state"):
        kept, wanted = numbers(getattr(state, part)), numbers(getattr(after_good, part))
        before = numbers(getattr(setup.start(), part))
        assert any((wanted[path] != before[path]).any() for path in wanted)
        for path, value in wanted.items():
            np.testing.assert_array_equal(kept[path], value, err_msg=path)
    state, (resumed,) = setup.run([other], state)
    _, (_, second) = setup.run([good, other])
    assert resumed["learning_rate"] == second["learning_rate"] > first["learning_rate"] and resumed["skipped"] == 1
    np.testing.assert_allclose(resumed["loss"], second["loss"], rtol=1e-6)


# --- accumulation


def test_four_parts_equal_one(training, rows, numbers, on_one_device):
    setup = training("classification", optim=STABLE, train=dataclasses.replace(TRAIN, accumulate=4))
    whole = dataclasses.replace(setup, train=TRAIN)
    programs = [str(jax.make_jaxpr(each.pure_step())(each.abstract, rows(), each.numbers)) for each in (whole, setup)]
    assert ["length=4" in program for program in programs] == [False, True]
    state, history = setup.run([rows(), rows(seed=1)])
    params, expected = on_one_device["classification"]
    for each, one in zip(history, expected, strict=True):
        assert each.keys() == one.keys()
        np.testing.assert_allclose(list(each.values()), [one[metric] for metric in each], rtol=1e-5)
    for path, value in numbers(state.params).items():
        np.testing.assert_allclose(value, params[path], atol=1e-6, err_msg=path)


def test_parts_of_masked_lm_have_keys_of_their_own_and_count_by_their_targets(training, rows):
    """The step of two parts against the two parts done by hand."""
    setup = training(optim=STABLE, train=dataclasses.replace(TRAIN, accumulate=2))
    state, batch = setup.start(), rows()
    batch["weight"][[3, 5]] = 0  # fewer targets in the second part
    gradient = jax.jit(jax.value_and_grad(lambda *arguments: setup.task.loss(setup.model, *arguments), has_aux=True))
    parts = []
    for index in range(2):
        part = {name: jnp.asarray(value[index::2]) for name, value in batch.items()}
        parts.append(gradient(state.params, part, rngs.stream(state.rng, "step", state.step, index)))
    weights = [float(metrics["weight"]) for (_, metrics), _ in parts]
    losses = [float(loss) for (loss, _), _ in parts]
    assert weights[0] != weights[1] and min(weights) > 0 and abs(losses[0] - losses[1]) > 1e-2
    share = np.array(weights) / sum(weights)
    grads = jax.tree.map(lambda a, b: a * share[0] + b * share[1], *(jax.device_get(grads) for _, grads in parts))
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(grads)))
    _, (metrics,) = setup.run([batch])
    assert metrics["weight"] == sum(weights)
    np.testing.assert_allclose(metrics["loss"], share @ losses, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_mean_gradients_is_the_mean_over_targets_however_they_fall_into_parts(parts):
    """A weighted least-squares loss; one part has no weight, another one nearly all of it."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    weight = np.array([0, 5, 1, 0, 0, 2, 0, 100], np.float32)
    params = {"w": jnp.asarray([0.5, -1.0, 2.0])}

    def loss(params, part, index):
        total = jnp.sum(part["weight"])
        squares = jnp.sum((part["x"] - params["w"][None, :]) ** 2, axis=1)
        mean = jnp.sum(squares * part["weight"]) / jnp.maximum(total, 1.0)
        return mean, {"loss": mean, "index": jnp.asarray(index, jnp.float32), "weight": total}

    batch = {"x": jnp.asarray(x), "weight": jnp.asarray(weight)}
    grads, metrics = jax.jit(lambda: mean_gradients(loss, params, batch, parts))()
    w = np.asarray(params["w"], np.float64)
    share = weight / weight.sum()
    plain = np.mean([2 * (w - x[part::8]).sum(0) for part in range(8)], axis=0)
    expected = 2 * ((w - x) * share[:, None]).sum(0)
    assert np.abs(plain - expected).max() > 0.1, "weights must matter"
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (((w - x) ** 2).sum(1) * share).sum(), rtol=1e-5)
    assert metrics["weight"] == weight.sum()
    np.testing.assert_allclose(metrics["index"], (np.arange(8) % parts * share).sum(), rtol=1e-5)


def test_mean_gradients_without_any_target_is_zero():
    def loss(params, part, index):
        mean = jnp.sum(params * part["weight"]) * 0.0
        return mean, {"loss": mean, "weight": jnp.sum(part["weight"])}

    for parts in (1, 2):
        grads, metrics = mean_gradients(loss, jnp.ones(()), {"weight": jnp.zeros(4)}, parts)
        assert grads == 0 and metrics == {"loss": 0, "weight": 0}


# --- frozen parameters


def test_frozen_parameters_keep_their_bits_and_have_no_gradient(training, rows, numbers, on_one_device):
    frozen = dataclasses.replace(STABLE, frozen=(r"^embeddings/", r"^layers/"), weight_decay=0.5, clip_norm=0.3)
    setup = training("classification", optim=frozen, train=TRAIN)
    start = setup.start()
    before = numbers(start.params)
    state, history = setup.run([rows(), rows(seed=1)], start)
    after = numbers(state.params)
    free, free_history = on_one_device["classification"]
    assert all((free[path] != before[path]).any() for path in before), "without freezing everything moves"
    kept = {path for path in before if path.startswith(("embeddings/", "layers/"))}
    assert kept and kept != before.keys()
    for path in before:
        assert (after[path] == before[path]).all() == (path in kept), path
    # The norm is that of the free parameters alone.
    batch = {name: jnp.asarray(value) for name, value in rows().items()}
    gradient = jax.jit(jax.grad(lambda p: setup.task.loss(setup.model, p, batch, jax.random.key(0))[0]))
    grads = numbers(gradient(setup.start().params))
    norms = [np.sqrt(sum((grads[path] ** 2).sum() for path in paths)) for paths in (before.keys() - kept, before)]
    assert norms[1] > 1.1 * norms[0]
    np.testing.assert_allclose([history[0]["gradient_norm"], free_history[0]["gradient_norm"]], norms, rtol=1e-5)
    assert norms[0] > frozen.clip_norm, "the norm is the one before clipping"


# --- what jit promises


def test_many_steps_are_traced_once_move_nothing_implicitly_and_donate(training, rows):
    setup = training("masked_lm", "data=2,fsdp=2,tensor=2", **SETTINGS)
    traces = []

    pure = setup.pure_step()

    @functools.wraps(pure)  # under its own name it is compiled already
    def counted(state, batch, numbers):
        traces.append(1)
        return pure(state, batch, numbers)

    step, state = jit_train_step(counted, setup.abstract, setup.mesh, setup.numbers), setup.start()
    for seed in range(4):
        batch, old = setup.put(rows(seed=seed)), state
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, batch, metrics)))
    assert len(traces) == 1 and int(state.step) == 4
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"Disallowed host-to-device transfer"):
        step(state, rows())


def test_metrics_are_scalars_with_the_rate_of_the_step(training, rows):
    setup = training("classification", **SETTINGS)
    state, metrics = setup.step(setup.start(), setup.put(rows()))
    assert metrics.keys() == {"loss", "accuracy", "weight", "gradient_norm", "learning_rate", "skipped"}
    assert metrics.pop("skipped").dtype == jnp.int32
    assert {(value.shape, str(value.dtype)) for value in metrics.values()} == {((), "float32")}
    assert state.step == 1 and state.step.dtype == jnp.int32
    rates = [each["learning_rate"] for each in setup.run([rows()] * 5)[1]]
    np.testing.assert_allclose(rates, [0.0075, 0.015, 0.0225, 0.03, 0.03], rtol=1e-6)


def test_the_masks_change_with_the_step_and_nothing_else(training, rows):
    setup = training("masked_lm", **SETTINGS)

    def loss(step):
        start = setup.start().replace(step=jax.device_put(jnp.int32(step), setup.abstract.step.sharding))
        return setup.run([rows()], start)[1][0]["loss"]

    first, second, again = loss(0), loss(1), loss(1)
    assert first != second and second == again


# --- values


GOLDEN = {"masked_lm": (4.242586, 2.534756), "classification": (1.077895, 0.993689)}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_first_step_of_seed_0_has_its_pinned_values(on_one_device, name):
    """Loss and gradient norm. A new value means that every run trains differently than before: update it together
    with the change that was meant to do that (initialisation, masks, the model's arithmetic), and for no other reason.
    Classification was promised one text a row, so that the two of row 1 see each other.
    """
    first = on_one_device[name][1][0]
    np.testing.assert_allclose((first["loss"], first["gradient_norm"]), GOLDEN[name], rtol=1e-5)


@pytest.mark.parametrize("name", ["masked_lm", "classification"])
def test_thirty_steps_learn_what_can_be_learned(training, rows, name):
    """Classification: the first token's class. Masked LM: every row repeats one token."""
    setup = training(name, **SETTINGS)
    batch = rows()
    if name == "masked_lm":
        token = np.arange(10, 18, dtype=np.int32)[:, None]
        batch["token_ids"] = np.where(batch["token_ids"] > 4, token, batch["token_ids"])
    losses = [each["loss"] for each in setup.run([batch] * 30)[1]]
    assert losses[0] > 1.0 and np.mean(losses[-3:]) < 0.3 * losses[0]
