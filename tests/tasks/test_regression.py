"""Regression: mean squared error against NumPy, and filler rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.config import ModelConfig
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.regression import Regression

MODEL = Transformer(
    ModelConfig(
        vocab_size=32, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=8,
        initializer_range=0.3,
    ),
    Regression.head,
    Regression.num_outputs,
)  # fmt: skip
PARAMS = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
BATCH = {
    "token_ids": jnp.asarray(np.random.default_rng(0).integers(5, 32, (5, 8)), jnp.int32),
    "attention_mask": jnp.ones((5, 8), jnp.int32),
    "positions": jnp.tile(jnp.arange(8, dtype=jnp.int32), (5, 1)),
    "labels": jnp.asarray([0.5, -1.5, 2.0, 40.0, 40.0], jnp.float32),
    "weight": jnp.asarray([1, 1, 1, 0, 0], jnp.float32),
}
KEY = jax.random.key(0)
GRADIENT = jax.jit(jax.value_and_grad(lambda params, batch: Regression().loss(MODEL, params, batch, KEY), has_aux=True))


def test_equals_numpy_over_the_rows_with_weight():
    inputs = (BATCH["token_ids"], BATCH["attention_mask"])
    out = jax.jit(MODEL.apply)({"params": PARAMS}, *inputs, positions=BATCH["positions"])
    errors = (np.asarray(out["logits"], np.float64)[:, 0] - np.asarray(BATCH["labels"])) ** 2
    assert errors.std() > 0.1 and errors.mean() > 2 * errors[:3].mean()
    (loss, metrics), _ = GRADIENT(PARAMS, BATCH)
    assert metrics.keys() == {"loss", "weight"} and metrics["weight"] == 3 and metrics["loss"] == loss
    np.testing.assert_allclose(loss, errors[:3].mean(), rtol=1e-5)


def test_filler_rows_alone_give_a_loss_and_gradient_of_zero():
    assert GRADIENT(PARAMS, BATCH)[0][0] > 0
    (loss, metrics), grads = GRADIENT(PARAMS, {**BATCH, "weight": jnp.zeros(5)})
    assert loss == metrics["weight"] == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), grads)


def test_the_gradient_moves_predictions_towards_the_labels():
    (loss, _), grads = GRADIENT(PARAMS, BATCH)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, PARAMS, grads)
    assert GRADIENT(moved, BATCH)[0][0] < 0.99 * loss


def test_labels_are_learnt_in_units_of_their_deviation_and_reported_in_their_own():
    far = {**BATCH, "labels": 1000 + 50 * BATCH["labels"]}
    task = Regression(1000.0, 50.0)
    loss, metrics = jax.jit(lambda params, batch: task.loss(MODEL, params, batch, KEY))(PARAMS, far)
    (near, _), _ = GRADIENT(PARAMS, BATCH)
    np.testing.assert_allclose(loss, near, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 2500 * near, rtol=1e-4)
    assert task.outputs(MODEL, PARAMS, BATCH).shape == (5, 1)
