"""The README's table of fine-tuning results, from the folders of finished runs.

    python experiments/results.py --runs=runs [--names=trec_coarse,sms_spam]

Each row is a folder in `--runs` with a summary of the stage "finetune": the task's main metric of the baseline, of the
model (mean and standard deviation over its seeds, 95% interval of the mean by resampling examples and seeds), and of
the int8 model; how many examples it was trained and tested on; the calibration error; and the wall time of all seeds.
Under it are the sources out of domain.

How to read it: `gain` is the model minus the baseline. A negative one means that word counts do better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from lepton_jax.config import QUALITY
from lepton_jax.workdir import read_json

RUNS = flags.DEFINE_string("runs", "runs", "The folder of the runs' folders.")
NAMES = flags.DEFINE_list("names", [], "Which of them, in this order; empty: all that have finished.")


def rows_of(folder: Path) -> list[list[str]]:
    """Returns the rows of one run: of its test set, then of each source out of domain."""
    summary, config = read_json(folder / "summary.json"), read_json(folder / "config.json")["config"]
    metric = QUALITY[config["task"]["name"]]

    def number(name: str, share: float = 100.0) -> float | None:
        return share * summary[name] if name in summary else None

    def show(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    name = f"finetune.{metric}"
    value, baseline = number(name), number(f"finetune.baseline_{metric}")
    assert value is not None
    deviation, interval = number(f"{name}_std"), summary.get(f"{name}_interval")
    spread = "" if deviation is None else f" ± {deviation:.1f}"
    bounds = "" if interval is None else "{:.1f} to {:.1f}".format(*(100 * bound for bound in interval))
    data = summary["finetune.data"]
    examples = f"{data['train']['examples']:,} / {data[summary['finetune.evaluated_on']]['examples']:,}"
    gain = "" if baseline is None else f"{value - baseline:+.1f}"
    errors = summary.get("finetune.calibration")
    calibration = "" if errors is None else f"{100 * errors['error_unscaled']:.1f} to {100 * errors['error']:.1f}"
    seconds = f"{summary['wall_seconds'] / 60:.1f} min"
    rows = [
        [folder.name, metric, examples, show(baseline), f"**{value:.1f}**{spread}", bounds, gain,
         show(number(f"int8.{metric}")), calibration, seconds]
    ]  # fmt: skip
    for place, source in enumerate(summary.get("finetune.out_of_domain", [])):
        abroad = [each[place].get(metric) for each in _seeds(folder)]
        found = [100 * each for each in abroad if each is not None]
        other = source.get(f"baseline_{metric}")
        short = source["source"].removeprefix("tfds:").partition(":")[0]
        spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
        rows.append(
            [f"  on {short}", metric, f"{source['examples']:,}", "" if other is None else f"{100 * other:.1f}",
             f"{np.mean(found):.1f}{spread}", "", "" if other is None else f"{np.mean(found) - 100 * other:+.1f}", "",
             "", ""]
        )  # fmt: skip
    return rows


def _seeds(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns the results out of domain of each seed of a run."""
    paths = sorted(folder.glob("seed_*/summary.json")) or [folder / "summary.json"]
    return [read_json(path)["finetune.out_of_domain"] for path in paths]


def main(argv: list[str]) -> None:
    del argv
    folders = [Path(RUNS.value) / name for name in NAMES.value] or sorted(
        path.parent for path in Path(RUNS.value).glob("*/summary.json")
    )
    header = (
        "run", "metric", "train / test", "TF-IDF", "model", "95%", "gain", "int8", "calibration error", "wall time"
    )  # fmt: skip
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for folder in folders:
        if "finetune.evaluated_on" in read_json(folder / "summary.json"):
            for row in rows_of(folder):
                print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    app.run(main)
