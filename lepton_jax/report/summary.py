"""A summary for people: in the terminal, and at the head and the end of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.box
import rich.table
import rich.text

from lepton_jax.evaluate.display import shown, words
from lepton_jax.report.page import escape, image, table
from lepton_jax.results import canvas
from lepton_jax.workdir import flatten, read_jsonl


def summary_table(summary: Mapping[str, Any]) -> rich.table.Table:
    """Returns a summary as a table for the terminal: one block a group, shares as percentages.

    Metrics that are dicts or lists (counts of the data, for instance) are left to summary.json and the page.
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="Summary", title_justify="left")
    table.add_column("")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for group, metrics in groups(summary).items():
        for row, (name, value) in enumerate(metrics.items()):
            cells = (group if row == 0 else "", words(name), value)
            table.add_row(*map(rich.text.Text, cells), end_section=row == len(metrics) - 1)
    return table


def examples_table(workdir: Path) -> rich.table.Table:
    """Returns the sentences that a run (or a quickstart's fine-tuning) predicted at its end, for the terminal."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="Predictions", title_justify="left")
    for column in ("text", "prediction", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for folder in (workdir, workdir / "finetune"):
        for line in read_jsonl(folder / "examples.jsonl"):
            cells = (line["text"], str(line["prediction"]), f"{line['score']:.3f}")
            table.add_row(*map(rich.text.Text, cells))
    return table


def comparison_tables(summary: Mapping[str, Any]) -> list[rich.table.Table]:
    """Returns what a comparison says besides its summary, for the terminal: in which fields the configs differ, and all
    metrics that both runs have; none of a summary of anything else."""
    found = []
    for name, title in (("compare.config", "Configs, where they differ"), ("compare.metrics", "All metrics")):
        lines = summary.get(name) or []
        if not lines:
            continue
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left")
        for column in lines[0]:
            right = name == "compare.metrics" and column != "metric"
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for line in lines:
            table.add_row(*(rich.text.Text(_compared(line, column)) for column in line))
        found.append(table)
    return found


def _compared(line: Mapping[str, Any], column: str) -> str:
    """Returns a cell of a line of a comparison: of metrics, in the metric's own unit."""
    value = line[column]
    if column in ("field", "metric"):
        return value
    return shown(line["metric"], value) if "metric" in line else json.dumps(value, ensure_ascii=False)


def groups(summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns group -> metric -> value as people read it, of the single values; those without a group come last, in the
    group "run". A value over several seeds has its standard deviation and its 95% interval beside it."""
    found: dict[str, dict[str, str]] = {}
    for key, value in sorted(summary.items(), key=lambda item: "." not in item[0]):
        if isinstance(value, (dict, list, tuple)) or key.endswith("_std"):
            continue
        group, _, name = key.partition(".") if "." in key else ("run", "", key)
        text = shown(name, value)
        if f"{key}_std" in summary:
            text += f" \N{PLUS-MINUS SIGN} {shown(name, summary[f'{key}_std'])}"
        if f"{key}_interval" in summary:
            text += " ({} to {})".format(*(shown(name, bound) for bound in summary[f"{key}_interval"]))
        found.setdefault(group, {})[name] = text
    return found


def summary_section(summary: Mapping[str, Any]) -> str:
    blocks = []
    for group, metrics in groups(summary).items():
        rows = [(escape(words(name)), escape(value)) for name, value in metrics.items()]
        blocks.append(f"<div><h3>{escape(group)}</h3>{table(rows, numbers=(1,))}</div>")
    return f'<div class="groups">{"".join(blocks)}</div>\n' if blocks else ""


def details(summary: Mapping[str, Any]) -> str:
    """Returns what a summary holds besides single values: counts of the data; lists of dicts as tables; calibration as
    a plot."""
    intervals = [name for name in summary if name.endswith("_interval")]
    nested = flatten({
        name: value for name, value in summary.items()
        if isinstance(value, (dict, list, tuple)) and name not in intervals
    })  # fmt: skip
    rows, tables = [], ""
    for name, value in nested.items():
        title = f"<code>{escape(name)}</code>"
        if name.endswith("calibration.bins") and value:
            tables += f"<h3>{title}</h3>\n{_reliability(value)}"
        elif name.endswith(".seeds") and value:
            tables += f"<h3>{title}</h3>\n{_seeds(value, name.removesuffix('seeds'), summary)}"
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(key for line in value for key in line))
            show = (
                _compared if name in ("compare.config", "compare.metrics") else lambda line, key: shown(key, line[key])
            )
            lines = [[escape(show(line, key)) if key in line else "" for key in columns] for line in value]
            numbers = [
                place for place, key in enumerate(columns)
                if all(isinstance(line.get(key, 0), (int, float)) for line in value)
            ]  # fmt: skip
            tables += f"<h3>{title}</h3>\n{table(lines, list(map(words, columns)), numbers=numbers)}"
        else:
            rows.append((title, escape(shown(name, value))))
    return f"<h2>Details</h2>\n{table(rows)}{tables}" if nested else ""


def _seeds(seeds: list[dict[str, Any]], group: str, summary: Mapping[str, Any]) -> str:
    """Returns a table with a line a metric: its value for each seed, and what a summary says of all of them."""
    rows = []
    for key in dict.fromkeys(key for line in seeds for key in line if key != "seed"):
        name = key if "." in key else f"{group}{key}"  # those of other groups have their full names
        each = [escape(shown(key, line[key])) if key in line else "" for line in seeds]
        both = [escape(shown(key, summary[of])) if of in summary else "" for of in (name, f"{name}_std")]
        bounds = escape(" to ".join(shown(key, bound) for bound in summary.get(f"{name}_interval", ())))
        rows.append([escape(words(key)), *each, *both, bounds])
    head = ["", *(f"seed {line['seed']}" for line in seeds), "mean", "deviation", "95%"]
    return table(rows, head, numbers=range(1, len(head)))


def _reliability(bins: list[dict[str, Any]]) -> str:
    """Returns what is right by what was said to be (Guo et al. 2017): on the dashed line they are the same."""
    plot, axes = canvas.figure(6.0, "predicted probability", "share that is right")
    axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=1, linestyle="--")
    sure, right, counts = ([line[name] for line in bins] for name in ("confidence", "accuracy", "count"))
    axes.plot(sure, right, color="#0b3d91", linewidth=1.2, marker="o", markersize=4)
    axes.set_xlim(min(sure) - 0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.ticklabel_format(axis="y", style="plain")
    shares, share_axes = canvas.figure(4.0, "predicted probability", "predictions")
    share_axes.bar(sure, counts, width=0.05, color="#0b3d91")
    return (
        f'<div class="figures">{image(plot, "Share that is right by predicted probability")}'
        f"{image(shares, 'How many predictions have which probability')}</div>\n"
    )
