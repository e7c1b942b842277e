"""Learning rates at exact steps."""

import numpy as np
import pytest

from lepton_jax.config import OptimConfig, TrainConfig
from lepton_jax.optim import make_schedule

PEAK, STEPS = 0.5, 20
# Rates as shares of the peak; step i is the (i + 1)-th update, so that STEPS is after the last one.
SHARES = {
    # (schedule, warm-up): {step: share}
    ("constant", 0): {0: 1, 1: 1, 19: 1, 20: 1},
    ("constant", 4): {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 19: 1, 100: 1},
    ("linear", 0): {0: 1, 1: 0.95, 10: 0.5, 19: 0.05, 20: 0, 30: 0},
    ("linear", 4): {0: 0.25, 3: 1, 4: 1, 5: 15 / 16, 12: 0.5, 19: 1 / 16, 20: 0, 30: 0},
    ("linear", 1): {0: 1, 1: 1, 2: 18 / 19, 20: 0},
    ("cosine", 0): {0: 1, 5: (1 + np.cos(np.pi / 4)) / 2, 10: 0.5, 15: (1 + np.cos(3 * np.pi / 4)) / 2, 20: 0, 30: 0},
    ("cosine", 4): {0: 0.25, 3: 1, 4: 1, 8: (1 + np.cos(np.pi / 4)) / 2, 12: 0.5, 20: 0, 30: 0},
    ("wsd", 0): {0: 1, 15: 1, 16: 1, 17: 0.75, 18: 0.5, 19: 0.25, 20: 0, 30: 0},
    ("wsd", 4): {0: 0.25, 3: 1, 4: 1, 16: 1, 17: 0.75, 19: 0.25, 20: 0},
}


def rates(schedule, steps=STEPS, **changes):
    optim = OptimConfig(schedule=schedule, **changes)
    made = make_schedule(optim, TrainConfig(steps=steps, learning_rate=PEAK))
    return lambda step: float(made(np.int32(step)))


@pytest.mark.parametrize(("schedule", "warmup"), SHARES)
def test_rates_at_exact_steps(schedule, warmup):
    rate = rates(schedule, warmup_steps=warmup)
    for step, share in SHARES[schedule, warmup].items():
        assert rate(step) == pytest.approx(PEAK * share, rel=1e-5, abs=1e-7), step


def test_the_four_schedules_differ():
    curves = {name: [rates(name)(step) for step in range(STEPS)] for name in ("constant", "linear", "cosine", "wsd")}
    assert len({tuple(curve) for curve in curves.values()}) == 4


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
def test_every_step_learns(schedule, warmup):
    rate = rates(schedule, warmup_steps=warmup)
    found = [rate(step) for step in range(STEPS)]
    assert min(found) > 0 and max(found) == pytest.approx(PEAK)
    assert all(np.diff(found[:warmup]) > 0) and all(np.diff(found[max(warmup - 1, 0) :]) <= 0)


def test_wsd_falls_over_its_share_of_all_steps():
    assert [rates("wsd", decay_share=0.5)(step) / PEAK for step in (10, 15, 20)] == pytest.approx([1, 0.5, 0])
    # It never reaches back into the warm-up.
    assert [rates("wsd", decay_share=1.0, warmup_steps=10)(step) / PEAK for step in (9, 10, 15, 20)] == pytest.approx(
        [1, 1, 0.5, 0]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_one_step_in_all(schedule):
    rate = rates(schedule, steps=1)
    assert rate(0) == pytest.approx(PEAK) and rate(1) == pytest.approx(0, abs=1e-7)
