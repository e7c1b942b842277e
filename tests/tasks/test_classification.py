"""Classification and multi-label: loss and metrics against NumPy, filler rows, packed texts, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.data.batches import evaluation_batches
from lepton_jax.data.rows import Rows
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.classification import Classification
from lepton_jax.tasks.losses import ClassLoss
from lepton_jax.tasks.multi_label import MultiLabel
from lepton_jax.tasks.regression import Regression
from lepton_jax.tasks.token_classification import TokenClassification

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
def loss_fn(kind=Classification, train=True, dropout=0.0, gradient=False):
    """Returns a compiled (params, batch, key) -> (loss, metrics), or -> ((loss, metrics), gradients)."""
    task, model = kind(3), make(dropout)[0]

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


def logits_of(batch):
    model, params = make()
    inputs = (batch["token_ids"], batch["attention_mask"])
    logits = jax.jit(model.apply)({"params": params}, *inputs, positions=batch["positions"])["logits"]
    return np.asarray(logits, np.float64)[:6]


def test_classification_equals_numpy_on_the_models_logits():
    batch = make_batch()
    logits, labels = logits_of(batch), np.asarray(batch["labels"])[:6]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), labels]
    loss, metrics = loss_fn()(make()[1], batch, KEY)
    accuracy = (logits.argmax(-1) == labels).mean()
    assert 0 < accuracy < 1 and metrics.keys() == {"loss", "accuracy", "weight"}
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    assert metrics["loss"] == loss and metrics["weight"] == 6
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


def test_multi_label_equals_numpy_on_the_models_logits():
    batch = make_batch()
    logits = logits_of(batch)
    targets = np.concatenate([logits > 0, np.ones((2, 3))]).astype(np.float32)
    targets[:4, 1] = 1 - targets[:4, 1]  # two of six rows are all right
    probabilities = 1 / (1 + np.exp(-logits))
    losses = -np.log(np.where(targets[:6] == 1, probabilities, 1 - probabilities)).sum(-1)
    loss, metrics = loss_fn(MultiLabel)(make()[1], {**batch, "labels": jnp.asarray(targets)}, KEY)
    assert metrics.keys() == {"loss", "exact_match", "weight"}
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    assert metrics["loss"] == loss and metrics["weight"] == 6
    np.testing.assert_allclose(metrics["exact_match"], 2 / 6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classes", "sets", "numbers"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_texts_have_the_loss_and_the_gradients_of_unpacked_ones(kind, pooling):
    """The same 12 texts, packed into rows and one a row, with pairs of texts marked by token types."""
    draw = np.random.default_rng(1)
    ids = [draw.integers(5, 32, size).astype(np.int32) for size in draw.integers(1, 8, 12)]
    ids[0] = ids[0][:1]
    labels = {
        "classes": draw.integers(0, 3, 12).astype(np.int32),
        "sets": draw.integers(0, 2, (12, 3)).astype(np.float32),
        "numbers": draw.normal(size=12).astype(np.float32),
    }[kind]
    rows = Rows(ids, labels, types=[(np.arange(len(row)) > 1).astype(np.int32) for row in ids])
    outputs = 1 if kind == "numbers" else 3
    config = dataclasses.replace(CONFIG, pooling=pooling, type_vocab_size=2)
    model = Transformer(config, "classification", outputs)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))

    def gradient(packed):
        (batch,) = evaluation_batches(rows, 12, 8, pack=packed, pad_id=0)
        task = {"classes": Classification(3, packed), "sets": MultiLabel(3, packed)}.get(
            kind, Regression(0.5, 2.0, packed)
        )
        return batch, jax.jit(jax.value_and_grad(lambda p: task.loss(model, p, batch, KEY), has_aux=True))(params)

    (packed, ((loss, metrics), grads)), (alone, ((wanted, expected), wanted_grads)) = gradient(True), gradient(False)
    assert alone["weight"].sum() == 12 > packed["weight"].sum(), "rows hold several texts"
    assert metrics["weight"] == expected["weight"] == 12 and metrics.keys() == expected.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted_grads)


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


def test_packed_tokens_have_the_loss_and_the_gradients_of_unpacked_ones():
    draw = np.random.default_rng(2)
    ids = [draw.integers(5, 32, size).astype(np.int32) for size in draw.integers(1, 8, 12)]
    rows = Rows(ids, [draw.integers(-1, 3, len(row)).astype(np.int32) for row in ids])
    model = Transformer(CONFIG, "token_classification", 3)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))

    def gradient(packed):
        (batch,) = evaluation_batches(rows, 12, 8, pack=packed, pad_id=0)
        task = TokenClassification(3, packed, ClassLoss(weights=(1.0, 2.0, 0.5)))
        return batch, jax.jit(jax.value_and_grad(lambda p: task.loss(model, p, batch, KEY), has_aux=True))(params)

    (packed, ((loss, metrics), grads)), (alone, ((wanted, expected), wanted_grads)) = gradient(True), gradient(False)
    assert alone["weight"].sum() == 12 > packed["weight"].sum(), "rows hold several texts"
    labelled = sum(int((labels >= 0).sum()) for labels in rows.labels)
    assert metrics["weight"] == expected["weight"] == labelled < sum(map(len, ids))
    np.testing.assert_allclose([loss, metrics["accuracy"]], [wanted, expected["accuracy"]], rtol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted_grads)


def test_tokens_equal_numpy_on_the_models_logits():
    batch = make_batch()
    labels = np.where(np.asarray(batch["attention_mask"]) > 0, np.asarray(batch["token_ids"]) % 4 - 1, -1)
    model = Transformer(CONFIG, "token_classification", 3)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    task, batch = TokenClassification(3), {**batch, "labels": jnp.asarray(labels, jnp.int32)}
    logits = np.asarray(task.outputs(model, params, batch), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scored = (labels >= 0) & (np.arange(8)[:, None] < 6)
    losses = -np.take_along_axis(logs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0][scored]
    loss, metrics = task.loss(model, params, batch, KEY)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == labels)[scored].mean(), rtol=1e-6)
    assert metrics["weight"] == scored.sum() < (labels >= 0).sum()
