"""The stage "compare": two fine-tuned models by their predictions of the same test examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_jax.config import CompareConfig
from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.compare import Line
from lepton_jax.evaluate.compare import compare as compare_lines
from lepton_jax.stages.assessment import KINDS
from lepton_jax.stages.completion import Summary
from lepton_jax.workdir import read_json, read_jsonl


def compare(config: CompareConfig) -> Summary:
    """Returns the difference of two runs, of one seed each or of the same number of them, see `evaluate.compare`.

    Raises:
      UserError: one is no folder of a fine-tuning that has finished, or they are not about the same.
    """
    sides = [(name, _runs(name, getattr(config, name))) for name in ("a", "b")]
    (_, first), (_, second) = sides
    if len(first) != len(second):
        raise UserError(
            f"config.b={config.b!r}: has {len(second)} seeds, config.a has {len(first)}; as many are needed"
        )
    kinds = [_kind(name, runs[0]) for name, runs in sides]
    if kinds[0] != kinds[1]:
        raise UserError(f"config.b={config.b!r}: predicts {kinds[1]}, config.a {kinds[0]}; there is nothing to compare")
    found: Any = compare_lines(kinds[0], [(_lines(a), _lines(b)) for a, b in zip(first, second, strict=True)])
    summary: Summary = {"compare.examples": found.pop("examples")}
    if tests := found.pop("mcnemar", None):
        summary["compare.mcnemar"] = tests
    for metric, values in found.items():
        for name in ("a", "b", "difference"):
            summary[f"compare.{metric}_{name}"] = values[name]
        summary[f"compare.{metric}_difference_interval"] = values["interval"]
    return summary


def _runs(name: str, given: str) -> list[Path]:
    """Returns the folders of a run, one a seed."""
    folder = Path(given).expanduser()
    if (folder / "finetune" / "predictions.jsonl").exists():  # of a quickstart
        folder = folder / "finetune"
    seeds = sorted(folder.glob("seed_*/predictions.jsonl"), key=lambda path: int(path.parent.name.partition("_")[2]))
    found = [path.parent for path in seeds] or [folder] * (folder / "predictions.jsonl").exists()
    if not found:
        raise UserError(
            f"config.{name}={given!r}: no predictions.jsonl there; name the WORKDIR of a finished fine-tuning"
        )
    return found


def _kind(name: str, folder: Path) -> Any:
    task = read_json(folder / "config.json")["config"].get("task", {}).get("name")
    if task not in KINDS:
        raise UserError(f"config.{name}: {folder} is no fine-tuning")
    return KINDS[task]


def _lines(folder: Path) -> list[Line]:
    return read_jsonl(folder / "predictions.jsonl")
