"""Learning rates at exact steps, and bit for bit those of optax's own schedules."""

import jax
import numpy as np
import optax
import pytest

from lepton_jax.config import OptimConfig, TrainConfig
from lepton_jax.optim import make_numbers, rate_of

KINDS = ("constant", "linear", "cosine", "wsd")

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
    numbers = make_numbers(OptimConfig(schedule=schedule, **changes), TrainConfig(steps=steps, learning_rate=PEAK))
    return lambda step: float(rate_of(schedule, np.int32(step), numbers))


@pytest.mark.parametrize(("schedule", "warmup"), SHARES)
def test_rates_at_exact_steps(schedule, warmup):
    rate = rates(schedule, warmup_steps=warmup)
    for step, share in SHARES[schedule, warmup].items():
        assert rate(step) == pytest.approx(PEAK * share, rel=1e-5, abs=1e-7), step


def test_the_four_schedules_differ():
    curves = {name: [rates(name)(step) for step in range(STEPS)] for name in KINDS}
    assert len({tuple(curve) for curve in curves.values()}) == 4


@pytest.mark.parametrize("schedule", KINDS)
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


def reference(optim, train):
    """Returns the same schedule from optax's parts, whose settings are Python's numbers."""
    peak, warmup = train.learning_rate, optim.warmup_steps
    rest = max(train.steps - warmup, 1)
    fall = max(min(round(optim.decay_share * train.steps), rest), 1)
    after = {
        "constant": [(0, optax.constant_schedule(peak))],
        "linear": [(0, optax.linear_schedule(peak, 0.0, rest))],
        "cosine": [(0, optax.cosine_decay_schedule(peak, rest))],
        "wsd": [(0, optax.constant_schedule(peak)), (rest - fall, optax.linear_schedule(peak, 0.0, fall))],
    }[optim.schedule]
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, *(part for _, part in after)], [warmup + start for start, _ in after])


SETTINGS = [  # learning rate, steps, warm-up, decay share
    (1e-3, 1000, 0, 0.2), (3e-4, 997, 61, 0.2), (2e-5, 50, 50, 0.2), (0.1, 300, 7, 1.0), (7e-4, 300, 299, 0.37),
    (5e-3, 1, 0, 0.2), (4e-3, 1, 1, 1.0), (2e-3, 2, 1, 0.01), (0.0, 9, 3, 0.5), (6e-3, 900, 400, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_rate_is_optax_to_the_last_bit(kind):
    jitted = jax.jit(rate_of, static_argnums=0)
    curves = set()
    for rate, steps, warmup, share in SETTINGS:
        optim = OptimConfig(schedule=kind, warmup_steps=warmup, decay_share=share)
        train = TrainConfig(learning_rate=rate, steps=steps)
        step, numbers = np.arange(1003, dtype=np.int32), make_numbers(optim, train)
        found = np.asarray(rate_of(kind, jax.numpy.asarray(step), numbers))
        wanted = np.asarray(reference(optim, train)(jax.numpy.asarray(step)))
        assert found.dtype == np.float32 and found.shape == step.shape
        np.testing.assert_array_equal(found, np.broadcast_to(wanted, step.shape), err_msg=str(numbers))
        # Compiled, sums and products may be contracted, which rounds once less.
        np.testing.assert_allclose(jitted(kind, step, numbers), found, rtol=3e-7, atol=1e-7 * rate)
        curves.add(found.tobytes())
    assert len(curves) == len(SETTINGS)


def test_numbers_are_arguments_of_one_program():
    optim, train = OptimConfig(), TrainConfig()
    changed = OptimConfig(warmup_steps=5, weight_decay=0.3), TrainConfig(steps=70, learning_rate=0.2)
    numbers = [make_numbers(*each) for each in ((optim, train), changed)]
    assert all(one != other for one, other in zip(*numbers, strict=True))
    texts = {jax.jit(rate_of, static_argnums=0).lower("linear", np.int32(3), each).as_text() for each in numbers}
    assert len(texts) == 1
