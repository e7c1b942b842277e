"""Losses against slow float64 references, and the weighted mean of every task."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.config import TaskConfig
from lepton_jax.core.errors import UserError
from lepton_jax.tasks import make_task
from lepton_jax.tasks.losses import (
    ClassLoss,
    balanced,
    binary_cross_entropy,
    correct,
    cross_entropy,
    squared_error,
    weighted_mean,
)

LOGITS = np.random.default_rng(0).normal(0, 4, (5, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 0], np.int32)
SETS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32)
TARGETS = {cross_entropy: LABELS, binary_cross_entropy: SETS}
OPTIONS = [
    {}, {"smoothing": 0.1}, {"gamma": 2.0}, {"gamma": 0.5}, {"weights": (0.5, 2.0, 3.0)},
    {"smoothing": 0.2, "gamma": 1.5, "weights": (0.5, 2.0, 3.0)},
]  # fmt: skip


def slow_cross_entropy(logits, label, smoothing=0.0, gamma=0.0, weights=(1.0,) * 3):
    total = sum(math.exp(z) for z in logits)
    terms = [-math.log(math.exp(z) / total) * (1 - math.exp(z) / total) ** gamma for z in logits]
    return weights[label] * ((1 - smoothing) * terms[label] + smoothing * sum(terms) / len(terms))


def slow_binary_cross_entropy(logits, targets, smoothing=0.0, gamma=0.0, weights=(1.0,) * 3):
    loss = 0.0
    for z, target, weight in zip(logits, targets, weights, strict=True):
        p, share = 1 / (1 + math.exp(-z)), target * (1 - smoothing) + smoothing / 2
        loss -= weight * share * math.log(p) * (1 - p) ** gamma
        loss -= weight * (1 - share) * math.log(1 - p) * p**gamma
    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("loss", "slow"), [(cross_entropy, slow_cross_entropy), (binary_cross_entropy, slow_binary_cross_entropy)]
)
def test_classification_losses_equal_a_slow_reference(loss, slow, options):
    targets = TARGETS[loss]
    expected = [slow(row, target, **options) for row, target in zip(LOGITS.astype(np.float64), targets, strict=True)]
    found = loss(jnp.asarray(LOGITS), jnp.asarray(targets), ClassLoss(**options))
    assert found.shape == (5,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if options:
        assert np.abs(found - loss(LOGITS, targets)).max() > 1e-2


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_no_loss_is_a_product_of_matrices(loss):
    """Which GPUs and TPUs compute in fewer bits than float32 has."""
    program = jax.make_jaxpr(lambda logits: loss(logits, TARGETS[loss], ClassLoss(0.1, 2.0, (0.5, 2.0, 3.0))))(LOGITS)
    assert "log" in str(program) and "dot_general" not in str(program)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 2, 2, 1, 0, 2], np.int32)
    found = balanced(labels, 3)
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert np.mean([found[label] for label in labels]) == pytest.approx(1.0)
    tokens = [np.array([-1, 0, 0, 0, 2, -1]), np.array([2, 1, 0, 2, -1])]
    assert balanced(tokens, 3) == found and balanced(labels, 4)[3] == 1.0
    np.testing.assert_allclose(balanced(np.eye(3)[labels], 3), found)


def test_classes_have_the_weights_that_the_config_gives_them():
    labels, targets = ("eggs", "ham", "spam"), np.array([0, 1, 1, 2])

    def weights(rule: str):
        task: Any = make_task(TaskConfig("classification", class_weights=rule), None, labels=labels, targets=targets)
        return task.form.weights

    assert weights("none") is None and weights("spam=4, eggs=0.5") == (0.5, 1.0, 4.0)
    assert weights("balanced") == balanced(targets, 3) != (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="no class is named 'spa'; there are eggs, ham, spam"):
        weights("spa=4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_correct_is_the_label_with_the_largest_logit_and_no_tie(dtype):
    logits = jnp.asarray(
        [[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [3.0, 3.0, 2.0], [0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]], dtype
    )
    found = correct(logits, jnp.asarray([1, 2, 0, 0, 1]))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [1, 0, 0, 0, 0])
    random = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 5, (4, 6))
    expected = random.argmax(-1) == labels
    assert 2 < expected.sum() < 22
    np.testing.assert_array_equal(correct(jnp.asarray(random), jnp.asarray(labels)), expected)


def test_softmax_and_sigmoid_losses_differ():
    assert np.abs(cross_entropy(LOGITS, LABELS) - binary_cross_entropy(LOGITS, np.eye(3)[LABELS])).max() > 0.1


def test_squared_error_equals_a_slow_reference():
    predictions, targets = LOGITS[:, 0], LOGITS[:, 1]
    expected = [(p - t) ** 2 for p, t in zip(predictions.tolist(), targets.tolist(), strict=True)]
    np.testing.assert_allclose(squared_error(predictions, targets), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, squared_error])
def test_half_precision_logits_are_computed_in_float32(loss):
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    logits, labels = (half[:, 0], jnp.asarray(LABELS, jnp.bfloat16)) if loss is squared_error else (half, TARGETS[loss])
    found = loss(logits, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, loss(logits.astype(jnp.float32), labels))
    assert np.abs(found - found.astype(jnp.bfloat16).astype(jnp.float32)).max() > 1e-4, "bfloat16 would differ"


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"gamma": 2.0, "smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_extreme_logits_stay_finite(loss, options):
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [30.0, -30.0, -40.0]])
    targets = jnp.asarray([0, 0, 0]) if loss is cross_entropy else jnp.asarray([[1.0, 0, 0]] * 3)
    values, gradient = jax.value_and_grad(lambda x: jnp.sum(loss(x, targets, ClassLoss(**options))))(logits)
    assert math.isfinite(values) and values >= 1e4 and bool(jnp.all(jnp.isfinite(gradient)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(0, 3)), min_size=1, max_size=6))
def test_weighted_mean_equals_numpy(pairs):
    values, weight = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    expected = np.average(values, weights=weight) if weight.sum() else 0.0
    found = weighted_mean(jnp.asarray(values, jnp.float32), jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_weighted_mean_never_looks_at_what_has_no_weight():
    weight = jnp.asarray([1.0, 0.0, 3.0, 0.0])
    clean, filled = jnp.asarray([1.0, 7.0, 5.0, 7.0]), jnp.asarray([1.0, jnp.nan, 5.0, jnp.inf])
    results = [jax.value_and_grad(weighted_mean)(values, weight) for values in (clean, filled)]
    for value, gradient in results:
        assert value == 4.0
        np.testing.assert_array_equal(gradient, [0.25, 0.0, 0.75, 0.0])


def test_weighted_mean_without_weight_is_zero_with_a_gradient_of_zero():
    value, gradient = jax.value_and_grad(weighted_mean)(jnp.asarray([3.0, jnp.inf]), jnp.zeros(2))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
