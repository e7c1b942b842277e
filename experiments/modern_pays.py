"""Does the modern recipe pay? `configs/modern.py` against `configs/bert.py` in the same time on the same machine.

    python experiments/modern_pays.py --workdir=runs/modern_pays [--seconds=600] [--seeds=3]

Parents: both recipes at size tiny, 5.4 and 5.5 million parameters. Alike in both: the text (the quickstart's English
one), vocabulary, length, packing, rows a step, mask rate (BERT's 15%), and the seconds: each recipe's speed is measured
first, and its steps are those that fill the time. All else is the recipe's own. The learning rates were chosen before,
by 60 steps of 16 rows with seed 100, whose held-out losses were for BERT 6.969 at 1e-3 and 6.981 at 2e-3, and for the
modern recipe 6.928 at 2e-3 and 7.045 at 4e-3: short runs, that tell no more than that neither rate is far off.
Cost: two runs a seed, one after the other; leave the machine alone. A run that is complete is not repeated.

How to read it: `report.md` in the workdir has the held-out masked-LM loss at the end of each run, in nats, and
`curves.png` the way there. Both recipes predict the same positions of the same rows, which is checked. The modern
recipe pays if its mean is lower by well more than the standard error.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure

from lepton_jax import cpus, stages, workdir
from lepton_jax.config import Config, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.train.logging import read_metrics

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
SECONDS = flags.DEFINE_integer("seconds", 600, "Of each run.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 32, "Of 128 tokens, a step.", lower_bound=4)

RATES = {"bert": 1e-3, "modern": 2e-3}
_PROBE = 24  # steps by which the speed is measured


def recipe(name: str, seed: int, steps: int) -> Config:
    """Returns the config of a run."""
    path = Path(__file__).parent.parent / "configs"
    config = load(path / f"{name}.py").get_config("tiny")
    corpus, validation = load(path / "quickstart.py").SOURCES["en"][:2]
    config.data.update(train=corpus, validation=validation)
    config.model.unroll = 0  # faster on CPUs
    config.task.mask_rate = 0.15
    every = max(steps // 10, 1)
    config.train.update(
        seed=seed, steps=steps, batch_size=ROWS.value, learning_rate=RATES[name], log_every=max(steps // 50, 1)
    )
    config.optim.warmup_steps = steps // 10
    config.evaluate.every, config.checkpoint.every = every, steps
    return resolve(config)


def load(path: Path) -> Any:
    """Returns a recipe as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps_for(name: str, folder: Path) -> int:
    """Returns how many steps of a recipe fill the time, by the speed of a short run at its full batch."""
    config = recipe(name, 0, _PROBE)
    train = dataclasses.replace(config.train, ramp_share=0.0, log_every=_PROBE // 3)
    evaluate = dataclasses.replace(config.evaluate, every=_PROBE)
    stages.run(dataclasses.replace(config, train=train, evaluate=evaluate), folder)
    lines = [line for line in read_metrics(folder) if "tokens_per_second" in line]
    rows = lines[-1]["tokens_per_second"] / (config.data.max_length * train.batch_size)  # full rows: packing loses 1%
    ramp = config.train.ramp_share
    return max(round(SECONDS.value * rows / (1 - ramp + ramp * (1 / 4 + 1 / 2) / 2)), 10)


def check_alike(folders: list[Path]) -> None:
    """Raises UserError where losses would be means over different positions.

    Evaluation draws masks by a fixed key and the number of the batch; beyond that, these decide which they are.
    """
    found = []
    for folder in folders:
        config = workdir.read_json(folder / "config.json")["config"]
        tokenizer = tokenizers.load(folder / "tokenizer").fingerprint
        found.append(json.dumps([config["data"], config["task"], config["evaluate"]["batch_size"], tokenizer]))
    if len(set(found)) > 1:
        raise UserError(f"{folders[0].parent}: the runs do not predict the same held-out positions")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    root = Path(WORKDIR.value)
    steps = {name: steps_for(name, root / f"speed_{name}") for name in RATES}
    folders = {(name, seed): root / f"{name}_{seed}" for seed in range(SEEDS.value) for name in RATES}
    seconds = {key: stages.run(recipe(*key, steps[key[0]]), folder)["wall_seconds"] for key, folder in folders.items()}
    check_alike(list(folders.values()))
    curves = {
        key: [(line["step"], line["validation/loss"]) for line in read_metrics(folder) if "validation/loss" in line]
        for key, folder in folders.items()
    }
    text = table(curves, seconds, steps)
    workdir.replace_file(root / "report.md", text + "\n![held-out loss](curves.png)\n")
    draw(curves, seconds, root / "curves.png")
    print(f"\n{text}")


def table(curves: dict[Any, Any], seconds: dict[Any, float], steps: dict[str, int]) -> str:
    """Returns the final held-out losses and their differences as Markdown."""
    lines = ["| seed | bert | modern | difference | seconds |", "|---|---|---|---|---|"]
    final = np.array([[curves[name, seed][-1][1] for name in RATES] for seed in range(SEEDS.value)])
    for seed, (bert, modern) in enumerate(final):
        walls = " / ".join(f"{seconds[name, seed]:.0f}" for name in RATES)
        lines.append(f"| {seed} | {bert:.3f} | {modern:.3f} | {modern - bert:+.3f} | {walls} |")
    bert, modern = final.mean(axis=0)
    gains = final[:, 1] - final[:, 0]
    lines.append(f"| mean | {bert:.3f} | {modern:.3f} | {gains.mean():+.3f} | |")
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    made = " and ".join(f"{count:,} steps of {name}" for name, count in steps.items())
    return "\n".join([*lines, "", f"standard error of the difference: {error:.3f}; {made}", ""])


def draw(curves: dict[Any, Any], seconds: dict[Any, float], path: Path) -> None:
    """Draws the held-out loss of every run over the time, shared out evenly among its steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, seed), points in curves.items():
        at, losses = zip(*points, strict=True)
        times = [step / at[-1] * seconds[name, seed] for step in at]
        style: dict[str, Any] = {"color": "#8c959f", "linestyle": "--"} if name == "bert" else {"color": "#0b3d91"}
        axes.plot(times, losses, marker="o", markersize=3, label=name if seed == 0 else None, **style)
    axes.set(xlabel="seconds", ylabel="held-out masked-LM loss (nats)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    cpus.prepare()  # as a command does
    app.run(main)
