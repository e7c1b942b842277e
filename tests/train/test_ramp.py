"""How many rows each step has while the batch grows."""

import pytest

from lepton_jax.config import TrainConfig
from lepton_jax.train import ramp


@pytest.mark.parametrize(
    ("share", "steps", "wanted"),
    [
        (0.0, 4, [1, 1, 1, 1]),
        (0.5, 8, [1, 1, 2, 2, 4, 4, 4, 4]),
        (1.0, 6, [1, 1, 1, 2, 2, 2]),
        (0.75, 4, [1, 2, 2, 4]),
        (0.1, 8, [4] * 8),
    ],
)
def test_a_quarter_then_a_half_then_all(share, steps, wanted):
    config = TrainConfig(steps=steps, batch_size=24, ramp_share=share)
    assert [ramp.parts(config, step) for step in range(1, steps + 1)] == wanted
    rows = [ramp.part_rows(config) * parts for parts in wanted]
    assert (set(rows) <= {6, 12, 24}) if share else rows == [24] * steps
