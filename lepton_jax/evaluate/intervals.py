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
    """Returns the 95% interval of the mean of a metric over runs.

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
    return bounds(found)
