"""What the pretraining recipes share: a named size, with the data and the steps that go with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lepton_jax.config import default_config
from lepton_jax.models.sizes import sized


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a recipe trains one size."""

    length: int  # tokens a row
    rows: int  # a step
    parts: int  # in which a step computes them, see `train.accumulate`
    steps: int
    rate: float  # the highest learning rate
    vocabulary: int


def at_scale(recipe: str, size: str, scales: Mapping[str, Scale], gated: bool = False) -> tuple[Any, Scale]:
    """Returns (a ConfigDict of the stage "pretrain" at a size, the size's scale), for a recipe to go on from.

    Args:
      recipe: its file, for the message.
      size: a name of `models.sizes.SIZES`.
      scales: those that the recipe has.
      gated: see `sized`.

    Raises:
      UserError: the recipe has no such size.
    """
    config: Any = default_config("pretrain")
    config.model.update(sized(recipe, size, scales, gated))
    scale = scales[size]
    config.data.update(max_length=scale.length, tokenizer_size=scale.vocabulary)
    config.train.update(steps=scale.steps, batch_size=scale.rows, accumulate=scale.parts, learning_rate=scale.rate)
    config.checkpoint.every = config.evaluate.every = 500
    return config, scale
