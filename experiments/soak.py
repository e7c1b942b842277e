"""What the scripts that disturb runs share: a small real run, and what two folders of it must have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lepton_jax import hub
from lepton_jax.train.logging import read_metrics

ROOT = Path(__file__).parent.parent
EVERY = 10
RECIPE = {
    "data.train": "tfds:movie_sentiment", "data.max_length": 32, "data.tokenizer_size": 2000, "train.log_every": 1,
    "train.batch_size": 16, "optim.warmup_steps": 20, "checkpoint.every": EVERY, "checkpoint.keep": 2,
    "evaluate.every": 200,
}  # fmt: skip


def command(folder: Path, fields: dict[str, Any], recipe: str = "pretrain") -> list[str]:
    """Returns the command of a run of a recipe at its smallest size, with fields such as `train.steps`."""
    changes = [f"--config.{name}={value}" for name, value in fields.items()]
    config = ROOT / "configs" / f"{recipe}.py"
    return [sys.executable, "-m", "lepton_jax.main", f"--config={config}:nano", f"--workdir={folder}", *changes]


def pretrain(folder: Path, steps: int) -> list[str]:
    """Returns the command of the small real run."""
    return command(folder, RECIPE | {"train.steps": steps})


def steps(folder: Path) -> list[int]:
    """Returns the complete checkpoints of a run."""
    return sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal())


def newest(folder: Path) -> int:
    """Returns the newest complete checkpoint of a run, 0 where there is none."""
    return max(steps(folder), default=0)


def logged(folder: Path) -> int:
    """Returns the last step of which a run recorded metrics, 0 where there is none."""
    return max((line["step"] for line in read_metrics(folder)), default=0)


def same(one: Path, other: Path) -> bool:
    """Tells whether two finished runs logged the same metrics and have the same parameters, bit for bit."""
    metrics = [read_metrics(folder, timed=False) for folder in (one, other)]
    params = [jax.tree.leaves(hub.load(folder).params) for folder in (one, other)]
    return metrics[0] == metrics[1] and all(map(np.array_equal, *params))
