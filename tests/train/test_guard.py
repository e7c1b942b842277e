"""When a run goes back, when it stops, and what it leaves then."""

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import TrainConfig
from lepton_jax.core.errors import UserError
from lepton_jax.train.guard import Guard


def feed(guard, totals, first=1):
    """Returns what the guard said at each step."""
    return [
        guard.goes_back(step, jnp.int32(total), {"token_ids": np.full((2, 3), step)})
        for step, total in enumerate(totals, start=first)
    ]


def make(folder, **limits):
    guard = Guard(TrainConfig(max_skipped=2, max_rollbacks=1, **limits), folder)
    guard.start(jnp.int32(0))
    return guard


@pytest.mark.parametrize("totals", [[0] * 6, [0, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2]])
def test_single_bad_steps_pass(tmp_path, totals):
    assert not any(feed(make(tmp_path), totals))


def test_steps_in_a_row_go_back_and_at_last_stop(tmp_path):
    guard = make(tmp_path)
    assert feed(guard, [0, 1, 2, 3]) == [False, False, False, True]
    guard.start(jnp.int32(0))
    message = r"of 2 steps in a row up to step 4 was not finite, after going back 1 times; the last batch is in bad_ba"
    with pytest.raises(UserError, match=message):
        feed(guard, [1, 2, 2], first=3)
    saved = np.load(tmp_path / "bad_batch_0.npz")
    assert saved["step"] == 4
    np.testing.assert_array_equal(saved["token_ids"], np.full((2, 3), 4))


def test_a_batch_that_cannot_be_kept_does_not_hide_why_the_run_stops(tmp_path):
    guard = make(tmp_path / "gone")
    feed(guard, [0, 1, 2, 3])
    guard.start(jnp.int32(0))
    message = r"was not finite, .* the last batch could not be kept \(No such file or directory\); lower"
    with pytest.raises(UserError, match=message):
        feed(guard, [1, 2, 2], first=3)


def test_a_resumed_run_counts_from_what_its_state_counted(tmp_path):
    guard = make(tmp_path)
    guard.start(jnp.int32(5))
    assert feed(guard, [5, 6, 7, 7]) == [False, False, False, True]
    guard.start(jnp.int32(5))
    assert feed(guard, [6, 6, 7, 7]) == [False] * 4
