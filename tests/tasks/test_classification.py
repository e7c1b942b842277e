"""Classification: loss and accuracy against NumPy, filler rows, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.classification import Classification

CONFIG = ModelConfig(
    vocab_size=32, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=8,
    initializer_range=0.3,
)  # fmt: skip
KEY = jax.random.key(5)


@functools.cache
def make(dropout=0.0):
    model = Transformer(dataclasses.replace(CONFIG, dropout=dropout), Classification.head, 3)
    return model, jax.jit(functools.partial(init_params, model))(jax.random.key(0))


@functools.cache
def loss_fn(kind="cross_entropy", train=True, dropout=0.0, gradient=False):
    """Returns a compiled (params, batch, key) -> (loss, metrics), or -> ((loss, metrics), gradients)."""
    task, model = Classification(3, kind), make(dropout)[0]

    def loss(params, batch, key):
        return task.loss(model, params, batch, key, train)

    return jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss)


def make_batch():
    """Returns 6 rows of several lengths, and 2 that are no less real but have no weight."""
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < rng.integers(2, 9, (8, 1))).astype(np.int32)
    batch = {
        "token_ids": np.where(mask, rng.integers(5, 32, mask.shape), 0).astype(np.int32),
        "attention_mask": mask,
        "positions": np.arange(8, dtype=np.int32) * mask,
        "labels": rng.integers(0, 3, 8).astype(np.int32),
        "weight": np.array([1] * 6 + [0] * 2, np.float32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_equals_numpy_on_the_models_logits(kind):
    model, params = make()
    batch = make_batch()
    inputs = (batch["token_ids"], batch["attention_mask"])
    logits = jax.jit(model.apply)({"params": params}, *inputs, positions=batch["positions"])["logits"]
    logits, labels = np.asarray(logits, np.float64)[:6], np.asarray(batch["labels"])[:6]
    if kind == "cross_entropy":
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), labels]
    else:
        probabilities = 1 / (1 + np.exp(-logits))
        losses = -np.log(np.where(np.eye(3)[labels] == 1, probabilities, 1 - probabilities)).sum(-1)
    loss, metrics = loss_fn(kind)(params, batch, KEY)
    accuracy = (logits.argmax(-1) == labels).mean()
    assert 0 < accuracy < 1 and metrics.keys() == {"loss", "accuracy", "weight"}
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    assert metrics["loss"] == loss and metrics["weight"] == 6
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


def test_the_losses_are_really_two():
    kinds = ("cross_entropy", "binary_cross_entropy")
    losses = [loss_fn(kind)(make()[1], make_batch(), KEY)[0] for kind in kinds]
    assert abs(losses[0] - losses[1]) > 0.1


def test_what_a_filler_row_holds_changes_nothing():
    gradient, params, batch = loss_fn(gradient=True), make()[1], make_batch()
    other = {name: value if name == "weight" else value.at[6:].set(0) for name, value in batch.items()}
    weighted = [gradient(params, {**rows, "weight": jnp.ones(8)}, KEY)[0][0] for rows in (batch, other)]
    assert abs(weighted[0] - weighted[1]) > 1e-3, "with weight they must matter"
    jax.tree.map(np.testing.assert_array_equal, gradient(params, batch, KEY), gradient(params, other, KEY))


def test_filler_rows_alone_give_a_loss_and_gradient_of_zero():
    batch = {**make_batch(), "weight": jnp.zeros(8)}
    (loss, metrics), grads = loss_fn(gradient=True)(make()[1], batch, KEY)
    assert loss == metrics["accuracy"] == metrics["weight"] == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), grads)


def test_dropout_follows_the_key_and_is_off_in_evaluation():
    def loss(seed, train):
        return float(loss_fn(train=train, dropout=0.5)(make()[1], make_batch(), jax.random.key(seed))[0])

    assert loss(0, True) == loss(0, True) != loss(1, True)
    assert loss(0, False) == loss(1, False) != loss(0, True)
