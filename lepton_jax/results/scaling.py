"""Laws of scale: a loss as a constant and one power of each variable, fitted to runs.

    L(N, D) = E + A / N^a + B / D^b    of parameters N and tokens D, Hoffmann et al. 2022 (arXiv:2203.15556), equation 2

Fitted as there (equation 3): E, A and B by their logarithms, by L-BFGS on the Huber loss of the logarithm of the
losses, from a grid of starts; but with the logarithms of the variables around their means, where the numbers are hardly
correlated. Without the constant, and of one variable, it is the plain power law.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.intervals import bounds

_HUBER = 1e-3  # where the loss of a residual becomes linear
_FOLLOWED = 8  # starts of the grid, the best ones
# The grid: exponents; and the logarithms of each term, amid the variables, over the mean loss.
_EXPONENTS = (0.05, 0.2, 0.5, 1.0)
_TERMS = (-3.0, -1.5, -0.5)


@dataclasses.dataclass(frozen=True)
class Law:
    """L = constant + sum of factors[i] / x[i]^exponents[i]."""

    constant: float  # 0 of the plain power law
    factors: tuple[float, ...]
    exponents: tuple[float, ...]

    def __call__(self, *variables: float | np.ndarray) -> np.ndarray:
        """Returns the loss at some values of each variable, of shapes that broadcast."""
        terms = zip(self.factors, self.exponents, variables, strict=True)
        return self.constant + sum(
            factor * np.asarray(value, np.float64) ** -exponent for factor, exponent, value in terms
        )  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law, and those of runs drawn anew, which tell how far it could be off."""

    law: Law
    drawn: tuple[Law, ...]

    def exponent(self, number: int) -> tuple[float, float]:
        """Returns the 95% interval of an exponent."""
        return bounds(np.array([law.exponents[number] for law in self.drawn]))

    def prediction(self, *variables: float) -> tuple[float, float]:
        """Returns the 95% interval of the loss at a value of each variable."""
        return bounds(np.array([float(law(*variables)) for law in self.drawn]))


def fit(
    variables: Sequence[np.ndarray], losses: np.ndarray, constant: bool = True, samples: int = 100, seed: int = 0
) -> Fit:
    """Returns the law that fits runs, and its bootstrap over them.

    Args:
      variables: of each run, float [n] each, above 0: one for a power law of one variable, two for L(N, D).
      losses: of each run, float [n], above 0.
      constant: whether there is a loss that remains; without one the law is a power.
      samples: how often runs are drawn anew for the intervals; 0: no intervals.
      seed: of the drawing.

    Raises:
      UserError: there are fewer runs than the law has numbers, a variable has one value alone, or a value is not
        above 0.
    """
    points = np.stack([np.asarray(each, np.float64) for each in variables], 1)
    losses = np.asarray(losses, np.float64)
    count, size = points.shape
    numbers = 2 * size + constant
    if not (np.isfinite(points).all() and np.isfinite(losses).all() and (points > 0).all() and (losses > 0).all()):
        raise UserError("a law of scale needs losses and variables that are finite and above 0")
    if count < numbers:
        raise UserError(f"a law of {numbers} numbers needs as many runs at least; there are {count}")
    for place in range(size):
        if len(np.unique(points[:, place])) < 2:
            raise UserError(f"variable {place + 1} of a law of scale has one value, {points[0, place]:g}, in all runs")
    with threadpool_limits(1, "blas"):  # vectors of five numbers, for which L-BFGS would wake a thread for each core
        return _fit(points, losses, constant, samples, seed)


def _fit(points: np.ndarray, losses: np.ndarray, constant: bool, samples: int, seed: int) -> Fit:
    count, size = points.shape
    logs, targets = np.log(points), np.log(losses)
    centre, level = logs.mean(0), targets.mean()
    logs, targets = logs - centre, targets - level
    followed = [_descend(start, logs, targets) for start in _starts(logs, targets, size, constant)]
    best = min(followed, key=lambda found: found[1])[0]
    draw = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < samples:
        chosen = draw.integers(0, count, count)
        if all(len(np.unique(points[chosen, place])) > 1 for place in range(size)):
            drawn.append(_descend(best, logs[chosen], targets[chosen], 1e-7)[0])
    laws = [_law(numbers, centre, level) for numbers in (best, *drawn)]
    return Fit(laws[0], tuple(laws[1:]))


def _law(numbers: np.ndarray, centre: np.ndarray, level: float) -> Law:
    size = len(centre)
    terms, exponents, floor = numbers[:size], numbers[size : 2 * size], numbers[2 * size :]
    factors = np.exp(terms + exponents * centre + level)
    constant = float(np.exp(floor[0] + level)) if len(floor) else 0.0
    return Law(constant, tuple(factors.tolist()), tuple(exponents.tolist()))


def _starts(logs: np.ndarray, targets: np.ndarray, size: int, constant: bool) -> list[np.ndarray]:
    """Returns the best points of the grid; each is (log terms, exponents, log constant if there is one)."""
    grid = np.array(list(itertools.product(*[_TERMS] * size, *[_EXPONENTS] * size, *[_TERMS] * constant)))
    losses = [_objective(point, logs, targets)[0] for point in grid]
    return list(grid[np.argsort(losses, kind="stable")[:_FOLLOWED]])


def _descend(
    start: np.ndarray, logs: np.ndarray, targets: np.ndarray, tolerance: float = 1e-10
) -> tuple[np.ndarray, float]:
    from scipy.optimize import minimize

    # The objective is scaled, for L-BFGS stops by absolute changes, and residuals of 1% give losses of 1e-5.
    found = minimize(
        lambda numbers: tuple(1e4 * part for part in _objective(numbers, logs, targets)), start, jac=True,
        method="L-BFGS-B", options={"maxiter": 1000, "ftol": tolerance, "gtol": 1e-6},
    )  # fmt: skip
    return found.x, float(found.fun)


def _objective(numbers: np.ndarray, logs: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns (mean Huber loss of the log losses, its gradient by the numbers)."""
    size = logs.shape[1]
    terms = numbers[:size] - numbers[size : 2 * size] * logs  # [n, size]
    if len(numbers) > 2 * size:
        terms = np.concatenate([terms, np.full((len(logs), 1), numbers[-1])], 1)
    largest = terms.max(1, keepdims=True)
    shares = np.exp(terms - largest)
    total = shares.sum(1, keepdims=True)
    residuals = (largest + np.log(total))[:, 0] - targets
    near = np.abs(residuals) <= _HUBER
    loss = np.where(near, residuals**2 / 2, _HUBER * (np.abs(residuals) - _HUBER / 2))
    slope = np.clip(residuals, -_HUBER, _HUBER)[:, None] * shares / total / len(logs)
    by_term = slope[:, :size]
    gradient = [by_term.sum(0), -(by_term * logs).sum(0), slope[:, size:].sum(0)]
    return float(loss.mean()), np.concatenate(gradient)
