"""The bootstrap: coverage of a known mean, and what varies."""

import math
import warnings

import numpy as np
import pytest

from lepton_jax.evaluate.intervals import bounds, interval, p_value

pytestmark = pytest.mark.once


def test_an_interval_has_the_width_that_statistics_gives_it():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = interval([lambda rows: float(values[rows].mean())], 400)
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], [values.mean() - 1.96 * error, values.mean() + 1.96 * error], atol=0.06)
    assert (low, high) == interval([lambda rows: float(values[rows].mean())], 400)
    assert (low, high) != interval([lambda rows: float(values[rows].mean())], 400, seed=1)


def test_seeds_that_differ_widen_it():
    right = np.random.default_rng(0).random(300) < 0.8
    same = [lambda rows: float(right[rows].mean())] * 3
    shifted = [lambda rows, by=by: float(right[rows].mean()) + by for by in (-0.1, 0.0, 0.1)]
    widths = [np.diff(interval(runs, 300))[0] for runs in (same, shifted)]
    assert widths[1] > 1.5 * widths[0]


def test_values_that_are_not_defined_do_not_count():
    np.testing.assert_allclose(bounds(np.array([np.nan, *np.linspace(0, 1, 1001)])), (0.025, 0.975))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(bounds(np.full(3, np.nan))).all()


def test_runs_are_drawn_with_the_same_examples():
    """Two runs that are right where the other is wrong have a mean of one half, whichever examples are drawn."""
    right = np.arange(100) % 3 == 0
    runs = [lambda rows: float(right[rows].mean()), lambda rows: float(1 - right[rows].mean())]
    drawn = set()

    def record(run):
        return lambda rows: drawn.add(tuple(rows)) or runs[run](rows)

    interval([record(0), record(1)], 100, samples=50)
    assert len(drawn) == 50, "one choice of examples a sample, for both runs"


def test_a_p_value_is_how_often_the_sign_is_the_other_one():
    differences = np.array([1.0] * 97 + [-1.0, 0.0, math.nan])
    assert p_value(differences) == p_value(-differences) == pytest.approx(2 * 3 / 100)
    assert p_value(np.zeros(9)) == 1.0 and p_value(np.ones(999)) == 2 / 1000
    assert p_value(np.array([math.nan])) == 1.0
