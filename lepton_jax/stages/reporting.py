"""The stage "report": what runs that are there have achieved, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lepton_jax import report, results
from lepton_jax.config import QUALITY, ReportConfig
from lepton_jax.core.errors import UserError
from lepton_jax.results import Run
from lepton_jax.results.figures import Bars, Curves, Figure, Lines
from lepton_jax.stages.completion import Summary


def report_on(config: ReportConfig, folder: Path) -> Summary:
    """Writes the report of runs into a folder, in place of an older one, and returns how many runs it is of.

    Raises:
      UserError: the folder holds a run or a sweep, whose own report it has; there are no runs or none is complete; or
        their metrics are lacking or do not mean the same.
    """
    for name in ("config.json", "plan.json"):
        if (folder / name).exists():
            raise UserError(f"{folder}: holds a run, for it has {name}; choose another workdir for the report")
    runs = results.find(*filter(None, (path.strip() for path in config.runs.split(","))))
    complete = [run for run in runs if run.state == "complete"]
    if not complete:
        raise UserError(f"config.runs={config.runs!r}: none of {len(runs)} runs is complete")
    metrics = config.metrics or _main_metrics(complete)
    figures: list[Figure] = [Bars(metrics[0])]
    if config.x:
        for path in filter(None, (config.x, config.by)):
            complete[0].value(path)
        figures.insert(0, Lines(config.x, metrics[0], config.by))
    figures.append(Curves())
    question = report.Question(config.title, metrics, tuple(figures), f"Runs: {config.runs}")
    report.write_runs(folder, runs, question)
    return {"report.runs": len(runs), "report.complete": len(complete), "report.metrics": ", ".join(metrics)}


def _main_metrics(runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns what tells how good the models of runs are, of a kind that all of them have."""
    task = next(
        (run.config[name] for run in runs for name in ("task.name", "finetune.task.name") if name in run.config), ""
    )
    candidates = [f"finetune.{QUALITY[task]}" if task in QUALITY else "", "pretrain.validation_loss"]
    for name in filter(None, candidates):
        if all(name in run.summary for run in runs):
            return (name,)
    raise UserError(f"config.metrics=(): the runs share no main metric; name some that they have, such as "
                    f"{', '.join(runs[0].metrics()[:5])}")  # fmt: skip
