"""Does the quickstart's pretraining pay? The same fine-tuning with it and without it, over seeds.

    python experiments/pretraining_pays.py --workdir=runs/pretraining_pays [--seeds=3] [--variant=zh]

Parent: `configs/quickstart.py`, run whole for each seed; only the seeds differ (initialisation, order, masks, dropout).
Cost: one quickstart a seed. A seed that has run is not run again.

How to read it: each row is a seed; `gain` is the test accuracy from the pretrained model minus that of the same model
and budget from random weights. Pretraining pays if the mean gain is well above its standard error.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from lepton_jax import stages
from lepton_jax.config import resolve

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
VARIANT = flags.DEFINE_string("variant", "", "Argument of configs/quickstart.py.")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    path = Path(__file__).parent.parent / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    assert spec is not None and spec.loader is not None
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)

    rows = []
    for seed in range(SEEDS.value):
        config = quickstart.get_config(VARIANT.value)
        config.pretrain.train.seed = config.finetune.train.seed = seed
        summary = stages.run(resolve(config), Path(WORKDIR.value) / f"seed{seed}")
        rows.append(
            [summary[f"finetune.{name}"] for name in ("majority_accuracy", "from_scratch_accuracy", "accuracy")]
        )
    accuracy: Any = np.asarray(rows)
    gains = accuracy[:, 2] - accuracy[:, 1]
    print("\n| seed | majority | from scratch | pretrained | gain |\n|---|---|---|---|---|")
    for seed, (row, gain) in enumerate(zip(accuracy, gains, strict=True)):
        print(f"| {seed} | {row[0]:.1%} | {row[1]:.1%} | {row[2]:.1%} | {100 * gain:+.1f} |")
    mean = accuracy.mean(axis=0)
    print(f"| mean | {mean[0]:.1%} | {mean[1]:.1%} | {mean[2]:.1%} | {100 * gains.mean():+.1f} |")
    if len(gains) > 1:
        print(f"\nstandard error of the gain: {100 * gains.std(ddof=1) / np.sqrt(len(gains)):.1f} points")


if __name__ == "__main__":
    app.run(main)
