from __future__ import annotations

import pytest

from lepton_jax.infer.metrics import classification_metrics, regression_metrics

LABELS = ["no", "yes", "yes", "no", "yes"]
PREDICTED = ["no", "yes", "no", "yes", "yes"]  # yes: 2 hits, 1 false alarm, 1 miss; no: 1 hit, 1 false alarm, 1 miss


def test_f1_of_two_classes_is_that_of_the_second():
    out = classification_metrics(LABELS, PREDICTED, ["no", "yes"])
    assert out == pytest.approx({"accuracy": 3 / 5, "f1": 4 / 6, "macro_f1": (4 / 6 + 2 / 4) / 2})
    assert classification_metrics(LABELS, PREDICTED, ["yes", "no"])["f1"] == pytest.approx(2 / 4)


def test_f1_of_three_classes_is_the_mean_over_classes():
    out = classification_metrics(["a", "b", "c", "c"], ["a", "a", "c", "c"], ["a", "b", "c"])
    assert out["f1"] == out["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert out["accuracy"] == 3 / 4


def test_a_class_that_nobody_names_counts_as_zero():
    with_unused = classification_metrics(["a", "a"], ["a", "a"], ["a", "b", "c"])
    assert with_unused["macro_f1"] == pytest.approx(1 / 3) and with_unused["accuracy"] == 1.0


def test_regression():
    out = regression_metrics([1.0, 2.0, 6.0], [2.0, 2.0, 3.0])
    assert out == pytest.approx({"mean_squared_error": 10 / 3, "mean_absolute_error": 4 / 3, "r2": 1 - 10 / 14})
