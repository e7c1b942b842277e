"""Laws of scale, from losses made by known ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad, curve_fit

from lepton_jax.core.errors import UserError
from lepton_jax.results import scaling

pytestmark = pytest.mark.once
SIZES, TOKENS = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))


def hoffmann(sizes, tokens):
    return 1.69 + 406.4 / sizes**0.34 + 410.7 / tokens**0.28  # the numbers of arXiv:2203.15556, equation 10


def test_known_numbers_come_back():
    law = scaling.fit((SIZES, TOKENS), hoffmann(SIZES, TOKENS), samples=0).law
    assert law.exponents == pytest.approx((0.34, 0.28), abs=1e-4) and law.constant == pytest.approx(1.69, abs=1e-3)
    assert law.factors == pytest.approx((406.4, 410.7), rel=1e-2)
    assert float(law(7e10, 1.4e12)) == pytest.approx(hoffmann(7e10, 1.4e12), rel=1e-4), "far from where it was fitted"


def test_intervals_hold_what_is_true_and_narrow_with_the_noise():
    widths = []
    for noise in (0.002, 0.02):
        draw = np.random.default_rng(1)
        losses = hoffmann(SIZES, TOKENS) * np.exp(noise * draw.normal(size=len(SIZES)))
        fit = scaling.fit((SIZES, TOKENS), losses, samples=30)
        for (low, high), true in ((fit.exponent(0), 0.34), (fit.exponent(1), 0.28),
                                  (fit.prediction(1e10, 1e12), hoffmann(1e10, 1e12))):  # fmt: skip
            assert low < true < high
        widths.append(fit.exponent(0)[1] - fit.exponent(0)[0])
    assert 3 * widths[0] < widths[1]


def test_an_outlier_moves_little():
    losses = hoffmann(SIZES, TOKENS)
    losses[7] *= 1.3
    law = scaling.fit((SIZES, TOKENS), losses, samples=0).law
    assert law.exponents == pytest.approx((0.34, 0.28), abs=0.01)
    squares, _ = curve_fit(lambda x, e, a, b, c, d: e + a / x[0] ** b + c / x[1] ** d, (SIZES, TOKENS), losses,
                           (1.69, 406, 0.34, 411, 0.28), maxfev=20000)  # fmt: skip
    assert abs(squares[2] - 0.34) > 0.02, "which it does where squares are fitted"


def test_one_variable_with_and_without_a_constant():
    x = np.geomspace(10, 1e4, 8)
    assert scaling.fit((x,), 3 * x**-0.2, constant=False, samples=0).law == scaling.Law(
        0.0, (pytest.approx(3),), (pytest.approx(0.2),)
    )
    law = scaling.fit((x,), 0.5 + 3 * x**-0.2, samples=0).law
    assert (law.constant, *law.factors, *law.exponents) == pytest.approx((0.5, 3, 0.2), rel=1e-3)
    noisy = 3 * x**-0.2 * np.exp(0.01 * np.random.default_rng(0).normal(size=8))
    slope = np.polyfit(np.log(x), np.log(noisy), 1)[0]
    assert scaling.fit((x,), noisy, constant=False, samples=0).law.exponents[0] == pytest.approx(-slope, abs=0.01)


def test_the_gradient_is_that_of_the_objective():
    draw = np.random.default_rng(0)
    logs, targets = draw.normal(size=(9, 2)), draw.normal(size=9) / 300
    for _ in range(5):
        numbers = draw.normal(size=5)
        off = check_grad(lambda n: 1e3 * scaling._objective(n, logs, targets)[0],
                         lambda n: 1e3 * scaling._objective(n, logs, targets)[1], numbers)  # fmt: skip
        assert off < 1e-5


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([1, 2], [1.0, 0.9], "a law of 3 numbers needs as many runs at least; there are 2"),
        ([1, 1, 1, 1], [4.0, 3, 2, 1], "variable 1 of a law of scale has one value, 1, in all runs"),
        ([0, 1, 2, 3], [4.0, 3, 2, 1], "finite and above 0"), ([1, 2, 3, 4], [1.0, 2, float("nan"), 1], "finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_said(sizes, losses, message):
    with pytest.raises(UserError, match=message):
        scaling.fit((np.array(sizes),), np.array(losses))
