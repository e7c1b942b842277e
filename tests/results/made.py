"""Run folders as the stages leave them, made without a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.config import default_config

RECORD = {
    "versions": {"python": "3.12", "jax": "0.12"}, "git_revision": "abc", "command": ["main", "--config=x"],
    "starts": [{"devices": {"platform": "cpu", "kind": "cpu", "count": 1}, "processes": 1}],
}  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_config(stage: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    tree = default_config(stage).to_dict()
    trainings = [tree["pretrain"], tree["finetune"]] if stage == "quickstart" else [tree]
    for run in filter(lambda each: "data" in each, trainings):
        run["data"]["train"] = "tfds:texts"
        run["task"]["name"] = "classification" if run["stage"] == "finetune" else "masked_lm"
    for path, value in changes.items():
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    return tree


def make_run(
    folder: Path, summary: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None,
    stage: str = "finetune", predictions: Sequence[Mapping[str, Any]] = (), metrics: Sequence[Mapping[str, Any]] = (),
    **record: Any,
) -> Path:  # fmt: skip
    """Writes a run that has finished, or with no summary one that has not."""
    write_json(folder / "config.json", {"config": make_config(stage, changes or {}), **RECORD, **record})
    if metrics:
        write_lines(folder / "metrics.jsonl", metrics)
    if predictions:
        write_lines(folder / "predictions.jsonl", predictions)
    if summary is not None:
        write_json(folder / "summary.json", summary)
    return folder


def make_sweep(
    workdir: Path, variants: Mapping[str, Mapping[str, Any]], run: Callable[[str, int], Mapping[str, Any] | None],
    seeds: int = 3, stage: str = "finetune", **plan: Any,
) -> Path:  # fmt: skip
    """Writes a sweep: `run` gives the arguments of `make_run` for each name and seed, or None where it has not run."""
    planned = []
    for name, changes in variants.items():
        for seed in range(seeds):
            number, changed = f"{len(planned):010x}", {**changes, "train.seed": seed}
            planned.append({"name": name, "seed": seed, "hash": number, "changes": changed})
            arguments = run(name, seed)
            if arguments is not None:
                make_run(workdir / number, changes=changed, stage=stage, **arguments)
    common = {"title": "A question?", "description": "How to read it.", "parent": "configs/finetune.py",
              "metrics": ["finetune.accuracy"], "figures": []}  # fmt: skip
    write_json(workdir / "plan.json", common | plan | {"variants": planned})
    return workdir


def guesses(accuracy: float, seed: int = 0, count: int = 400) -> list[dict[str, Any]]:
    """Returns predictions of the same texts, of which about a share is right."""
    labels = np.random.default_rng(0).integers(0, 2, count)
    right = np.random.default_rng(seed).random(count) < accuracy
    return [
        {"text": f"text {n}", "label": "ab"[a], "prediction": "ab"[a if yes else 1 - a], "score": 0.9}
        for n, (a, yes) in enumerate(zip(labels, right, strict=True))
    ]


def accuracy(lines: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([line["label"] == line["prediction"] for line in lines]))


def tuned(quality: float, seed: int, **more: Any) -> dict[str, Any]:
    """Returns the arguments of `make_run` for a fine-tuning of about an accuracy."""
    lines = guesses(quality, seed)
    summary = {"finetune.evaluated_on": "test", "finetune.accuracy": accuracy(lines), "finetune.loss": 1 - quality,
               "wall_seconds": 60.0 + seed, **more}  # fmt: skip
    return {"summary": summary, "predictions": lines}
