"""The stage "compare": two trained models, by their predictions of the same test examples or by their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax import results
from lepton_jax.config import METRICS, CompareConfig
from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.compare import compare as compare_lines
from lepton_jax.evaluate.display import last_name
from lepton_jax.evaluate.lines import KINDS
from lepton_jax.results import Run
from lepton_jax.results.comparable import require_comparable
from lepton_jax.results.differences import differing
from lepton_jax.stages.completion import Summary
from lepton_jax.workdir import read_jsonl

Pairs = Sequence[tuple[Run, Run]]


def compare(config: CompareConfig) -> Summary:
    """Returns the difference of two trainings, of one seed each or of the same number of them.

    Of fine-tunings see `evaluate.compare`; of pretrainings each metric has the 95% interval of the paired t-test over
    seeds. `compare.config` has the fields in which the two differ, `compare.metrics` all metrics that both have.

    Raises:
      UserError: one is no training that has finished, or they are not about the same.
    """
    first, second = (_runs(name, getattr(config, name)) for name in ("a", "b"))
    if len(first) != len(second):
        raise UserError(
            f"config.b={config.b!r}: has {len(second)} seeds, config.a has {len(first)}; as many are needed"
        )
    pairs = list(zip(first, second, strict=True))
    tasks = [_task(runs[0]) for runs in (first, second)]
    kinds = [KINDS.get(task, "tokens") for task in tasks]
    if kinds[0] != kinds[1]:
        raise UserError(f"config.b={config.b!r}: predicts {kinds[1]}, config.a {kinds[0]}; there is nothing to compare")
    summary = _by_examples(pairs, kinds[0]) if tasks[0] in KINDS else _by_seeds(pairs)
    fields = differing([first[0].config, second[0].config])
    summary["compare.config"] = [{"field": path, "a": a, "b": b} for path, (a, b) in fields.items()]
    summary["compare.metrics"] = _shared(pairs)
    return summary


def _by_examples(pairs: Pairs, kind: Any) -> Summary:
    lines = [tuple(read_jsonl(run.predictions("finetune")) for run in pair) for pair in pairs]
    found: Any = compare_lines(kind, lines)  # type: ignore[arg-type]
    summary: Summary = {"compare.examples": found.pop("examples")}
    seeds = " and seeds" if len(pairs) > 1 else ""
    summary["compare.interval"] = f"95%, by a paired bootstrap over examples{seeds}"
    if tests := found.pop("mcnemar", None):
        summary["compare.mcnemar"] = tests
    for metric, values in found.items():
        for name in ("a", "b", "difference"):
            summary[f"compare.{metric}_{name}"] = values[name]
        summary[f"compare.{metric}_difference_interval"] = values["interval"]
    return summary


def _by_seeds(pairs: Pairs) -> Summary:
    runs = [run for pair in pairs for run in pair]
    require_comparable(runs, "pretrain.validation_loss")
    summary: Summary = {"compare.seeds": len(pairs)}
    several = len(pairs) > 1
    summary["compare.interval"] = "95%, by the paired t-test over seeds" if several else "none, of one seed each"
    names = (*METRICS["masked_lm"], *METRICS["causal_lm"])
    for line in _shared(pairs):
        name = last_name(line["metric"])
        if line["metric"].startswith("pretrain.") and name.endswith(names) and "first" not in name:
            summary |= {f"compare.{name}_{side}": line[side] for side in ("a", "b", "difference")}
            if several:
                summary[f"compare.{name}_difference_interval"] = [line["low"], line["high"]]
    return summary


def _shared(pairs: Pairs) -> list[dict[str, Any]]:
    """Returns each metric that all runs have: the means of both sides, b - a, and of several seeds its interval."""
    shared = [name for name in pairs[0][0].metrics() if all(name in run.metrics() for pair in pairs for run in pair)]
    lines = []
    for metric in shared:
        values = np.array([[run.number(metric) for run in pair] for pair in pairs])
        a, b = map(float, values.mean(0))
        line: dict[str, Any] = {"metric": metric, "a": a, "b": b, "difference": b - a}
        if len(pairs) > 1:
            line["low"], line["high"] = _interval(values[:, 1] - values[:, 0])
        lines.append(line)
    return lines


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95% interval of the mean of differences, by Student's t."""
    from scipy import stats

    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * spread
    return float(differences.mean()) - half, float(differences.mean()) + half


def _runs(name: str, given: str) -> list[Run]:
    """Returns the runs of one side, one a seed, in the order of their seeds."""
    try:
        runs = results.find(*filter(None, (path.strip() for path in given.split(","))))
    except UserError as error:
        raise UserError(f"config.{name}={given!r}: {error}") from None
    for run in runs:
        if run.state != "complete":
            raise UserError(f"config.{name}={given!r}: {run.folder} is not complete; name finished trainings")
        if _task(run) in KINDS and not run.predictions("finetune").is_file():
            raise UserError(f"config.{name}={given!r}: no predictions.jsonl in {run.folder}; name finished trainings")
    if fields := differing([run.config for run in runs]):
        path, values = next(iter(fields.items()))
        others = next(value for value in values if value != values[0])
        raise UserError(f"config.{name}={given!r}: holds runs that differ by more than their seeds, such as {path}="
                        f"{values[0]!r} and {others!r}; name those of one setting")  # fmt: skip
    return sorted(runs, key=lambda run: run.seed)


def _task(run: Run) -> str:
    return run.config.get("finetune.task.name" if run.config.get("stage") == "quickstart" else "task.name", "")
