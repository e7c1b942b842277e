"""Metrics against slow definitions, their names, and data for which they are not defined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.config import METRICS
from lepton_jax.evaluate import metrics

pytestmark = pytest.mark.once

DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(0, 2, (40, 3))
LABELS = DRAW.integers(0, 3, 40)
SETS = (DRAW.random((40, 3)) < 0.4).astype(np.float32)
NUMBERS = DRAW.normal(size=40)
TARGETS = NUMBERS + DRAW.normal(size=40)


def slow_f1(wanted, predicted):
    right = sum(a and b for a, b in zip(wanted, predicted, strict=True))
    total = sum(wanted) + sum(predicted)
    return 2 * right / total if total else 0.0


def test_names_are_those_of_the_config():
    assert tuple(metrics.classification(LOGITS, LABELS)) == METRICS["classification"]
    assert tuple(metrics.multi_label(LOGITS, SETS)) == METRICS["multi_label"]
    assert tuple(metrics.regression(NUMBERS, TARGETS)) == METRICS["regression"]
    assert ("loss", *metrics.spans([[(0, 1, "A")]], [[(0, 1, "A")]])) == METRICS["token_classification"]


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_equals_slow_definitions(classes):
    logits, labels = LOGITS[:, :classes], np.minimum(LABELS, classes - 1)
    found = metrics.classification(logits, labels)
    predicted = logits.argmax(1)
    each = [slow_f1(labels == c, predicted == c) for c in range(classes)]
    assert found["accuracy"] == found["micro_f1"] == np.mean(predicted == labels)
    assert found["macro_f1"] == pytest.approx(np.mean(each)) and found["f1"] == pytest.approx(
        each[1] if classes == 2 else np.mean(each)
    )
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    losses = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in rows]
    assert found["loss"] == pytest.approx(np.mean(losses))
    np.testing.assert_allclose(metrics.classification_losses(logits, labels), losses)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    areas = []
    for c in range(classes):
        ours, others = probabilities[labels == c, c], probabilities[labels != c, c]
        areas.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(ours, others)]))
    assert found["auroc"] == pytest.approx(np.mean(areas))
    counts = np.array([[np.sum((labels == a) & (predicted == b)) for b in range(classes)] for a in range(classes)])
    rows_, columns, total, trace = counts.sum(1), counts.sum(0), counts.sum(), np.trace(counts)
    mcc = (trace * total - rows_ @ columns) / math.sqrt((total**2 - columns @ columns) * (total**2 - rows_ @ rows_))
    assert found["mcc"] == pytest.approx(mcc)


def test_multi_label_equals_slow_definitions():
    found, predicted = metrics.multi_label(LOGITS, SETS), LOGITS > 0
    assert found["exact_match"] == np.mean([np.array_equal(a, b) for a, b in zip(predicted, SETS > 0, strict=True)])
    assert found["macro_f1"] == pytest.approx(np.mean([slow_f1(SETS[:, c], predicted[:, c]) for c in range(3)]))
    assert found["micro_f1"] == pytest.approx(slow_f1(SETS.ravel(), predicted.ravel()))
    probabilities = 1 / (1 + np.exp(-LOGITS))
    losses = -np.log(np.where(SETS == 1, probabilities, 1 - probabilities)).sum(1)
    assert found["loss"] == pytest.approx(losses.mean())


def test_regression_equals_slow_definitions():
    found = metrics.regression(NUMBERS, TARGETS)
    assert found["loss"] == found["mean_squared_error"] == pytest.approx(np.mean((NUMBERS - TARGETS) ** 2))
    assert found["mean_absolute_error"] == pytest.approx(np.mean(np.abs(NUMBERS - TARGETS)))
    assert found["r2"] == pytest.approx(1 - np.mean((NUMBERS - TARGETS) ** 2) / np.var(TARGETS))
    assert found["pearson"] == pytest.approx(np.corrcoef(NUMBERS, TARGETS)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (NUMBERS, TARGETS)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_spans_count_what_is_exactly_right(data):
    def draw():
        cuts = sorted(data.draw(st.sets(st.integers(0, 9), max_size=6)))
        kinds = data.draw(st.lists(st.sampled_from("AB "), min_size=len(cuts), max_size=len(cuts)))
        return [(a, b, k) for a, b, k in zip(cuts, cuts[1:], kinds, strict=False) if k != " "]

    wanted, predicted = [draw(), draw()], [draw(), draw()]
    found = metrics.spans(wanted, predicted)
    right = sum(len(set(a) & set(b)) for a, b in zip(wanted, predicted, strict=True))
    said, there = sum(map(len, predicted)), sum(map(len, wanted))
    assert found["precision"] == pytest.approx(right / said if said else 0.0)
    assert found["recall"] == pytest.approx(right / there if there else 0.0)
    assert found["f1"] == pytest.approx(2 * right / (said + there) if said + there else 0.0)


def test_types_that_differ_by_a_hyphen_are_two():
    assert metrics.spans([[(0, 2, "A-"), (2, 3, "_")]], [[(0, 2, "A"), (2, 3, "-")]])["f1"] == 0.0
    assert metrics.spans([[(0, 2, "B-A"), (2, 4, "B-A")]], [[(0, 2, "B-A"), (2, 4, "B-A")]])["f1"] == 1.0
    assert metrics.spans([[(0, 2, "A"), (2, 4, "A")]], [[(0, 4, "A")]])["f1"] == 0.0, "neighbours are not one"


def test_ranks_survive_logits_whose_probabilities_are_all_one():
    logits = np.array([[0.0, 100.0], [0.0, 200.0], [0.0, 300.0], [0.0, 50.0]], np.float32)
    assert set(metrics.softmax(logits)[:, 1]) == {1.0}
    assert metrics.classification(logits, np.array([0, 1, 1, 0]))["auroc"] == 1.0
    assert metrics.classification(logits, np.array([0, 1, 0, 1]))["auroc"] == 0.25


def test_what_is_not_defined_is_nan_and_says_nothing(recwarn):
    one = metrics.classification(LOGITS[:3, :2], np.zeros(3, int))
    assert math.isnan(one["auroc"]) and one["accuracy"] <= 1
    flat = metrics.regression(np.ones(4), NUMBERS[:4])
    assert math.isnan(flat["pearson"]) and math.isnan(flat["spearman"]) and flat["loss"] > 0 > flat["r2"]
    same = metrics.regression(NUMBERS[:4], np.ones(4))
    assert math.isnan(same["r2"]) and math.isnan(same["pearson"]) and same["mean_absolute_error"] > 0
    lost = metrics.regression(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    assert tuple(lost) == METRICS["regression"] and all(map(math.isnan, lost.values()))
    assert math.isnan(metrics.multi_label(LOGITS, np.zeros((40, 3)))["auroc"])
    assert not [warning for warning in recwarn if "lepton_jax" in str(warning.filename)]


def test_extreme_logits_have_finite_losses():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    np.testing.assert_allclose(metrics.classification_losses(logits, np.array([0, 0])), [0, 2e4])
    np.testing.assert_allclose(metrics.multi_label_losses(logits, np.array([[1, 0], [1, 1]])), [0, 1e4])
