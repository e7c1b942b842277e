"""How far a figure would move with other test examples and other seeds, by the bootstrap (Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 1000
_LEVEL = 0.95


def bounds(values: np.ndarray) -> tuple[float, float]:
    """Returns the percentile interval at 95% of what a figure was in each sample.

    Samples that do not define it (NaN) do not count; where none does, both bounds are NaN.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def interval(
    runs: Sequence[Callable[[np.ndarray], float]], count: int, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95% interval of the mean of a metric over runs, see `drawn`."""
    return bounds(drawn(runs, count, samples, seed))


def drawn(
    runs: Sequence[Callable[[np.ndarray], float]], count: int, samples: int = SAMPLES, seed: int = 0
) -> np.ndarray:
    """Returns the mean of a metric over runs as other examples and seeds could have had it, float64 [samples].

    Each sample draws examples, the same ones for every run, and runs: what varies is both.

    Args:
      runs: each gives the metric of a run over the examples of the numbers that it gets, int [count].
      count: how many examples there are.
      samples: how many are drawn.
      seed: of the drawing.
    """
    draw = np.random.default_rng(seed)
    found = np.empty(samples)
    for sample in range(samples):
        examples, chosen = draw.integers(0, count, count), draw.integers(0, len(runs), len(runs))
        value = {run: runs[run](examples) for run in set(chosen.tolist())}
        found[sample] = np.mean([value[run] for run in chosen.tolist()])
    return found


def p_value(differences: np.ndarray) -> float:
    """Returns how often a difference that was drawn has the other sign or is none, twice, for either could have been
    the larger one (Efron and Tibshirani 1993, section 15.4); 1 where no sample defines it. It is never 0: of n samples
    the smallest is 2 / (n + 1) (Davison and Hinkley 1997, equation 4.11)."""
    defined = differences[~np.isnan(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(2 * (1 + tail) / (len(defined) + 1), 1.0))
