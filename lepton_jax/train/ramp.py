"""How the batch grows: few rows a step at the beginning, where gradients agree, and all of them later.

McCandlish et al. 2018 (arXiv:1812.06162) measure why: the batch beyond which more rows add little grows as the loss
falls. The data come in parts of a batch, of which a step takes one or several; each size is one compilation.
"""

from __future__ import annotations

from lepton_jax.config import RAMP_PARTS, TrainConfig


def part_rows(config: TrainConfig) -> int:
    """Returns the rows of a part: those of the smallest batch."""
    return config.batch_size // RAMP_PARTS if config.ramp_share else config.batch_size


def parts(config: TrainConfig, step: int) -> int:
    """Returns how many parts a step takes, counted from 1: a quarter, then half of the batch, then all of it.

    The first two are for half of the ramp each, `ramp_share * steps` steps in all.
    """
    if not config.ramp_share:
        return 1
    ramp = config.ramp_share * config.steps
    return RAMP_PARTS // 4 if step <= ramp / 2 else RAMP_PARTS // 2 if step <= ramp else RAMP_PARTS
