"""A run as a page to look at: one self-contained `report.html`, and the summary as a table for the terminal.

Everything comes from the files in the run folders. The page loads nothing from elsewhere, its texts are escaped,
and what it shows by colour it also shows by shape or number, so that a grey print reads the same.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.table
import rich.text

from lepton_jax.config import STAGES, to_dict
from lepton_jax.workdir import flatten, read_json, read_jsonl, replace_file

_EXAMPLES = 8  # of each kind that a page shows
_LABELS = 20  # rows of a confusion matrix; further labels are left out
_CHARACTERS = 240  # of an example's text

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
       color: #1f2328; background: #fff; max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; font-weight: 600; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; font-weight: 600; margin: 3.2rem 0 1rem; padding-top: 1rem; border-top: 1px solid #d8dee4; }
h3 { font-size: .95rem; font-weight: 600; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; }
.note { color: #59636e; }
.figures { display: grid; grid-template-columns: 3fr 2fr; gap: 1rem; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid #eaeef2; }
th { font-weight: 500; color: #59636e; }
td.number, th.number { text-align: right; }
.groups { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0 2.5rem; }
.groups table { width: 100%; }
.groups td.number { padding-right: 0; }
.matrix td, .matrix th { padding: .45rem .8rem; border: 1px solid #eaeef2; text-align: right; }
.matrix td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }  /* or white on white */
.matrix .dark { color: #fff; }
.matrix th { max-width: 12rem; overflow-wrap: anywhere; }
.examples { width: 100%; }
.examples td:first-child { overflow-wrap: anywhere; width: 62%; }
.setup td:first-child { white-space: nowrap; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
               h2, h3 { break-after: avoid; } tr, img { break-inside: avoid; } }
@media (max-width: 45rem) { .figures { grid-template-columns: 1fr; } }
"""


def write_report(path: Path, runs: Mapping[str, Path], summary: Mapping[str, Any]) -> None:
    """Writes the page of one or more runs to `path`, replacing an older one.

    Of each run it shows what its folder holds: config.json (required), metrics.jsonl, and predictions.jsonl with
    lines {"text", "label", "prediction", "score"}, whose labels are names or, for a regression, numbers.

    Args:
      path: the page, such as WORKDIR/report.html.
      runs: title of each section ("pretrain", "finetune", ...) -> the run's folder.
      summary: metric -> value; a dot in a metric's name ends the name of its group.

    Raises:
      UserError: a run's file is missing or damaged, or the page cannot be written.
    """
    sections = [_run_section(title, folder) for title, folder in runs.items()]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lepton_jax report</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Report</h1>
<p class="note">{_escape(", ".join(runs))}</p>
{_summary_section(summary)}
{"".join(sections)}
{_details(summary)}
</body>
</html>
"""
    replace_file(path, page)


def summary_table(summary: Mapping[str, Any]) -> rich.table.Table:
    """Returns a summary as a table for the terminal: one block a group, shares as percentages.

    Metrics that are dicts or lists (counts of the data, for instance) are left to summary.json and the page.
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="Summary", title_justify="left")
    table.add_column("")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for group, metrics in _groups(summary).items():
        for row, (name, value) in enumerate(metrics.items()):
            cells = (group if row == 0 else "", _words(name), _format(name, value))
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


def _groups(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns group -> metric -> value of the single values; those without a group come last, in the group "run"."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in sorted(summary.items(), key=lambda item: "." not in item[0]):
        if not isinstance(value, (dict, list, tuple)):
            group, _, name = key.partition(".") if "." in key else ("run", "", key)
            groups.setdefault(group, {})[name] = value
    return groups


def _words(name: str) -> str:
    """Returns a metric's name for reading: "validation/f1_macro" gives "validation f1 macro"."""
    return name.replace("/", " ").replace("_", " ")


def _format(name: str, value: Any) -> str:
    """Returns a metric's value as a person reads it; the metric's name tells what it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if name.endswith(("accuracy", "agreement", "f1", "utilisation")):
        return f"{100 * value:.1f}%"
    if name.endswith(("ratio", "speedup")):
        return f"{value:.2f}x"
    if name.endswith("per_second"):
        return f"{value:,.0f}"
    if name.endswith("seconds"):
        return f"{value:,.1f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), css: str = "", numbers: int = -1) -> str:
    """Returns an HTML table of cells that are HTML already; the column `numbers` is aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if column == numbers else "" for column in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
            + "</tr>\n"
        )

    head = f"<thead>{line(header, 'th')}</thead>\n" if header else ""
    return f'<table class="{css}">\n{head}<tbody>\n{"".join(line(row, "td") for row in rows)}</tbody>\n</table>\n'


def _summary_section(summary: Mapping[str, Any]) -> str:
    blocks = []
    for group, metrics in _groups(summary).items():
        rows = [(_escape(_words(name)), _escape(_format(name, value))) for name, value in metrics.items()]
        blocks.append(f"<div><h3>{_escape(group)}</h3>{_table(rows, numbers=1)}</div>")
    return f'<div class="groups">{"".join(blocks)}</div>\n' if blocks else ""


def _details(summary: Mapping[str, Any]) -> str:
    """Returns what a summary holds besides single values: counts of the data, for instance."""
    nested = flatten({name: value for name, value in summary.items() if isinstance(value, (dict, list, tuple))})
    rows = [(f"<code>{_escape(name)}</code>", _escape(_format(name, value))) for name, value in nested.items()]
    return f"<h2>Details</h2>\n{_table(rows)}" if rows else ""


def _run_section(title: str, folder: Path) -> str:
    record = read_json(folder / "config.json")
    return (
        f"<h2>{_escape(title)}</h2>\n<p class='note'><code>{_escape(folder)}</code></p>\n"
        + _curves(read_jsonl(folder / "metrics.jsonl"))
        + _predictions(read_jsonl(folder / "predictions.jsonl"))
        + _examples("Predictions of the config's own texts", read_jsonl(folder / "examples.jsonl"))
        + _setup(record)
    )


def _curves(metrics: list[dict[str, Any]]) -> str:
    """Returns the loss and the learning rate over the steps as two figures."""

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line[name]) for line in metrics if name in line]
        return [step for step, _ in points], [value for _, value in points]

    if not metrics:
        return "<p class='note'>No metrics were logged.</p>\n"
    loss, loss_axes = _figure(6.0, "step", "loss")
    loss_axes.plot(*series("loss"), color="#8c959f", linewidth=1.2, label="train")
    loss_axes.plot(
        *series("validation/loss"), color="#0b3d91", linewidth=1.6, marker="o", markersize=4, label="validation"
    )
    loss_axes.legend(frameon=False)
    rate, rate_axes = _figure(4.0, "step", "learning rate")
    rate_axes.plot(*series("learning_rate"), color="#1f2328", linewidth=1.4)
    last = {
        name: value
        for line in metrics
        for name, value in line.items()
        if "/" in name or name in ("tokens_per_second", "utilisation")
    }
    rows = [(_escape(_words(name)), _escape(_format(name, value))) for name, value in last.items()]
    return (
        f'<div class="figures">{_image(loss, "Loss over the steps of training")}'
        f"{_image(rate, 'Learning rate over the steps of training')}</div>\n"
        + (f"<h3>At step {metrics[-1]['step']}</h3>\n{_table(rows, numbers=1)}" if rows else "")
    )


def _predictions(predictions: list[dict[str, Any]]) -> str:
    """Returns the confusion matrix, or a scatter plot for numbers, and examples of right and wrong predictions."""
    if not predictions:
        return ""
    if all(isinstance(line[key], (int, float)) for line in predictions for key in ("label", "prediction")):
        by_error = sorted(predictions, key=lambda line: -abs(line["label"] - line["prediction"]))
        figure, axes = _figure(5.0, "label", "prediction")
        labels, guesses = ([line[key] for line in predictions] for key in ("label", "prediction"))
        axes.scatter(labels, guesses, s=6, color="#0b3d91", alpha=0.4, linewidths=0)
        axes.plot([min(labels), max(labels)], [min(labels), max(labels)], color="#8c959f", linewidth=1, linestyle="--")
        return (
            f'<h3>Predictions</h3>\n<div class="figures">{_image(figure, "Predictions against labels")}</div>\n'
            + _examples("Largest errors", by_error[:_EXAMPLES])
            + _examples("Smallest errors", by_error[: -_EXAMPLES - 1 : -1])
        )
    wrong = sorted(
        (line for line in predictions if line["label"] != line["prediction"]), key=lambda line: -line["score"]
    )
    right = [line for line in predictions if line["label"] == line["prediction"]]
    return (
        _confusion(Counter((line["label"], line["prediction"]) for line in predictions))
        + _examples(f"Mistakes, the most confident first ({len(wrong):,} of {len(predictions):,})", wrong[:_EXAMPLES])
        + _examples(f"Right predictions, the first few ({len(right):,} of {len(predictions):,})", right[:_EXAMPLES])
    )


def _confusion(counts: Counter[tuple[Any, Any]]) -> str:
    """Returns a table of labels (rows) by predictions (columns), shaded by the share of the row."""
    totals: Counter[Any] = Counter()
    for pair, count in counts.items():
        for name in set(pair):
            totals[name] += count
    names = sorted((name for name, _ in totals.most_common(_LABELS)), key=str)
    left_out = (
        f"<p class='note'>The {_LABELS} most frequent of {len(totals)} labels.</p>\n" if len(totals) > _LABELS else ""
    )
    rows = ["<tr><th></th>" + "".join(f"<th>{_escape(name)}</th>" for name in names) + "<th>recall</th></tr>\n"]
    for label in names:
        total = sum(count for (true, _), count in counts.items() if true == label)
        cells = []
        for guess in names:
            share = counts[label, guess] / total if total else 0.0
            dark = ' class="dark"' if share > 0.5 else ""
            cells.append(
                f'<td{dark} style="background: rgba(11, 61, 145, {0.85 * share:.2f})">{counts[label, guess]:,}</td>'
            )
        recall = f"{100 * counts[label, label] / total:.1f}%" if total else "-"
        rows.append(f"<tr><th>{_escape(label)}</th>{''.join(cells)}<td>{recall}</td></tr>\n")
    return (
        "<h3>Confusion matrix</h3>\n<p class='note'>Rows are the true labels, columns the predictions.</p>\n"
        f'{left_out}<table class="matrix">\n{"".join(rows)}</table>\n'
    )


def _examples(title: str, lines: list[dict[str, Any]]) -> str:
    def value(item: Any) -> str:
        return _escape(f"{item:.3f}" if isinstance(item, float) else item)

    def text(line: dict[str, Any]) -> str:
        whole = line["text"]
        return _escape(whole if len(whole) <= _CHARACTERS else whole[:_CHARACTERS] + " ...")

    if not lines:
        return ""
    columns = [name for name in ("label", "prediction", "score") if name in lines[0]]
    rows = [(text(line), *(value(line.get(name, "")) for name in columns)) for line in lines]
    return f"<h3>{_escape(title)}</h3>\n{_table(rows, ('text', *columns), css='examples', numbers=3)}"


def _setup(record: dict[str, Any]) -> str:
    """Returns the fields of the config that are not the defaults, and what the run ran on."""
    config = record["config"]
    stage = config.get("stage")
    defaults = flatten(to_dict(STAGES[stage](stage=stage))) if stage in STAGES else {}
    changed = [
        (
            f"<code>{_escape(path)}</code>",
            f"<code>{_escape(value)}</code>",
            f"<code>{_escape(defaults.get(path, ''))}</code>",
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
        + (_table(changed, ("field", "value", "default")) if changed else "<p class='note'>It does not.</p>\n")
        + "<h3>Ran with</h3>\n"
        + _table([(name, f"<code>{_escape(value)}</code>") for name, value in rows], css="setup")
    )


def _figure(width: float, x: str, y: str) -> tuple[Any, Any]:
    """Returns a matplotlib figure that no window knows of, and its axes."""
    from matplotlib.figure import Figure  # here, because importing it takes a second

    figure = Figure(figsize=(width, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    return figure, axes


def _image(figure: Any, description: str) -> str:
    """Returns a figure as an <img> that holds its own SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{_escape(description)}" src="data:image/svg+xml;base64,{data}">'
