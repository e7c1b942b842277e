"""Calibration: errors by hand, and a temperature that is found again."""

import numpy as np
import pytest

from lepton_jax.evaluate.calibration import confidence, expected_error, fit_temperature, reliability
from lepton_jax.evaluate.metrics import classification_losses, softmax

pytestmark = pytest.mark.once


def test_errors_by_hand():
    sure = np.array([0.55, 0.55, 0.95, 0.95, 0.95, 1.0])
    right = np.array([True, False, True, True, False, True])
    rows = reliability(sure, right, bins=10)
    assert [(row["count"], row["confidence"], row["accuracy"]) for row in rows] == [
        (2, pytest.approx(0.55), 0.5), (4, pytest.approx(0.9625), 0.75)
    ]  # fmt: skip
    assert expected_error(sure, right, bins=10) == pytest.approx((2 * 0.05 + 4 * 0.2125) / 6)
    assert expected_error(np.zeros(0), np.zeros(0, bool)) == 0.0


@pytest.mark.parametrize("kind", ["classes", "sets"])
def test_a_temperature_is_found_again(kind):
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 1.5, (4000, 3))
    if kind == "classes":
        labels = np.array([draw.choice(3, p=row) for row in softmax(logits)])
    else:
        labels = (draw.random((4000, 3)) < 1 / (1 + np.exp(-logits))).astype(float)
    found = fit_temperature(3.0 * logits, labels)
    assert found == pytest.approx(3.0, rel=0.08)

    def error(scale):
        probabilities = softmax(scale * logits) if kind == "classes" else 1 / (1 + np.exp(-scale * logits))
        return expected_error(*confidence(probabilities, labels))

    assert error(3.0) > 0.1 > 0.03 > error(3.0 / found)


def test_a_model_that_says_too_much_of_sets_is_found_out():
    """At 0.3 it is right in one of ten, at 0.7 in five: too sure by 0.2 everywhere."""
    probabilities = np.repeat([0.3, 0.7], 1000)[:, None]
    labels = np.concatenate([np.arange(1000) < 100, np.arange(1000) < 500])[:, None].astype(float)
    assert expected_error(*confidence(probabilities, labels)) == pytest.approx(0.2)


def test_a_temperature_lowers_the_loss_and_no_prediction_changes():
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(0, 4, (200, 4)), draw.integers(0, 4, 200)
    found = fit_temperature(logits, labels)
    assert classification_losses(logits / found, labels).mean() < classification_losses(logits, labels).mean()
    assert found > 1 and fit_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1.0
    assert np.array_equal((logits / found).argmax(1), logits.argmax(1))


def test_confidence_of_sets_is_of_each_class():
    sure, right = confidence(np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[1, 1], [0, 1]]))
    np.testing.assert_allclose(sure, [0.9, 0.2, 0.4, 0.6])
    assert right.tolist() == [True, True, False, True]


def test_confidence_of_classes_is_of_the_likeliest():
    sure, right = confidence(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), np.array([0, 1]))
    np.testing.assert_allclose(sure, [0.7, 0.6])
    assert right.tolist() == [True, False]
