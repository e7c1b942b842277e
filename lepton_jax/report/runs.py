"""The section of one run: its curves, predictions, config, and what it ran with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_jax.config import STAGES, to_dict
from lepton_jax.evaluate.display import shown, words
from lepton_jax.report.page import escape, image, table
from lepton_jax.report.predictions import examples, predictions
from lepton_jax.results import canvas
from lepton_jax.workdir import flatten, read_json, read_jsonl


def run_section(title: str, folder: Path) -> str:
    record = read_json(folder / "config.json")
    return (
        f"<h2>{escape(title)}</h2>\n<p class='note'><code>{escape(folder)}</code></p>\n"
        + curves(read_jsonl(folder / "metrics.jsonl"))
        + predictions(read_jsonl(folder / "predictions.jsonl"), record["config"].get("task", {}).get("name", ""))
        + examples("Predictions of the config's own texts", read_jsonl(folder / "examples.jsonl"))
        + setup(record)
    )


def curves(metrics: list[dict[str, Any]]) -> str:
    """Returns the loss and the learning rate over the steps as two figures."""

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line[name]) for line in metrics if name in line]
        return [step for step, _ in points], [value for _, value in points]

    if not metrics:
        return "<p class='note'>No metrics were logged.</p>\n"
    loss, loss_axes = canvas.steps(6.0, "loss")
    loss_axes.plot(*series("loss"), color="#8c959f", linewidth=1.2, label="train")
    loss_axes.plot(
        *series("validation/loss"), color="#0b3d91", linewidth=1.6, marker="o", markersize=4, label="validation"
    )
    loss_axes.legend(frameon=False)
    rate, rate_axes = canvas.steps(4.0, "learning rate")
    rate_axes.plot(*series("learning_rate"), color="#1f2328", linewidth=1.4)
    last = {
        name: value
        for line in metrics
        for name, value in line.items()
        if "/" in name or name in ("tokens_per_second", "utilisation")
    }
    rows = [(escape(words(name)), escape(shown(name, value))) for name, value in last.items()]
    return (
        f'<div class="figures">{image(loss, "Loss over the steps of training")}'
        f"{image(rate, 'Learning rate over the steps of training')}</div>\n"
        + (f"<h3>At step {metrics[-1]['step']}</h3>\n{table(rows, numbers=(1,))}" if rows else "")
    )


def setup(record: dict[str, Any]) -> str:
    """Returns the fields of the config that are not the defaults, and what the run ran on."""
    config = record["config"]
    stage = config.get("stage")
    defaults = flatten(to_dict(STAGES[stage](stage=stage))) if stage in STAGES else {}
    changed = [
        (
            f"<code>{escape(path)}</code>",
            f"<code>{escape(value)}</code>",
            f"<code>{escape(defaults.get(path, ''))}</code>",
        )
        for path, value in flatten(config).items()
        if path not in defaults or value != defaults[path]
    ]
    places = [
        f"{where['devices']['count']} x {where['devices']['kind']} ({where['devices']['platform']})"
        + (f" of {where['processes']} processes" if where["processes"] > 1 else "")
        for where in record.get("starts", ())
    ]
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())),
        ("git revision", record.get("git_revision") or "unknown"),
        ("devices", ", then ".join(places) or "unknown"),
        ("command", " ".join(record.get("command", []))),
    ]
    return (
        "<h3>Config, where it differs from the defaults</h3>\n"
        + (table(changed, ("field", "value", "default")) if changed else "<p class='note'>It does not.</p>\n")
        + "<h3>Ran with</h3>\n"
        + table([(name, f"<code>{escape(value)}</code>") for name, value in rows], css="setup")
    )
