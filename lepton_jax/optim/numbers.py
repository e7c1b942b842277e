"""The numbers of a run that its train step is given, and not compiled with.

Runs that differ by these alone share one compiled program: a sweep over learning rates compiles once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lepton_jax.config import OptimConfig, TrainConfig


class Numbers(NamedTuple):
    """Scalars of numpy or jax: float32 [] for rates, int32 [] for steps."""

    learning_rate: Any  # float32, the peak
    rise: Any  # float32, the rate of the first step of the warm-up less the peak; rounded once, so no sum of the two
    warmup_steps: Any  # int32
    fall_from: Any  # int32, the step after which the rate falls, where it does
    fall_steps: Any  # int32, at least 1, after which it is 0
    weight_decay: Any  # float32


def make_numbers(optim: OptimConfig, train: TrainConfig) -> Numbers:
    """Returns the numbers of a config, in numpy: on no device yet.

    "wsd" falls in the last `optim.decay_share` of the steps, but never begins in the warm-up; the others from it on.
    """
    peak, warmup = train.learning_rate, optim.warmup_steps
    rest = max(train.steps - warmup, 1)
    fall = max(min(round(optim.decay_share * train.steps), rest), 1) if optim.schedule == "wsd" else rest
    return Numbers(
        learning_rate=np.float32(peak),
        rise=np.float32(peak / max(warmup, 1) - peak),
        warmup_steps=np.int32(warmup),
        fall_from=np.int32(warmup + rest - fall),
        fall_steps=np.int32(fall),
        weight_decay=np.float32(optim.weight_decay),
    )
