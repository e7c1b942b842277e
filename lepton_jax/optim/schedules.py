"""Learning rate by step: a linear warm-up, then constant, linear, cosine or warm-up-stable-decay."""

from __future__ import annotations

import optax

from lepton_jax.config import OptimConfig, TrainConfig


def make_schedule(optim: OptimConfig, train: TrainConfig) -> optax.Schedule:
    """Returns the schedule: from 0 to `train.learning_rate` in the warm-up, at 0 again after the last step.

    "wsd" stays at the peak and falls linearly over the last `optim.decay_share` of the steps (Hu et al. 2024,
    arXiv:2404.06395); "constant" never falls.
    """
    peak, warmup = train.learning_rate, optim.warmup_steps
    rest = max(train.steps - warmup, 1)
    decay = max(min(round(optim.decay_share * train.steps), rest), 1)
    after: list[tuple[int, optax.Schedule]] = {  # (first step after the warm-up, schedule from there)
        "constant": [(0, optax.constant_schedule(peak))],
        "linear": [(0, optax.linear_schedule(peak, 0.0, rest))],
        "cosine": [(0, optax.cosine_decay_schedule(peak, rest))],
        "wsd": [(0, optax.constant_schedule(peak)), (rest - decay, optax.linear_schedule(peak, 0.0, decay))],
    }[optim.schedule]
    # The first step of a warm-up of n steps already learns: rates 1/n, 2/n, ...
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, *(part for _, part in after)], [warmup + start for start, _ in after])
