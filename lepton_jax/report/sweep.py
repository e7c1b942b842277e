"""Runs together as a page: what was asked, what came out and how sure it is, and where each number is from.

    FOLDER/report.html    one self-contained page
    FOLDER/report.md      the table, the figures and what the runs ran with, for a README
    FOLDER/tables/        METRIC.md and METRIC.tex, one of each metric
    FOLDER/figures/       NAME.pdf, NAME.svg and NAME.png

All of it comes from the folders of the runs, and of a sweep from its plan.json; it can be made again at any time, and
shows whatever is complete by then.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.display import headings, shown
from lepton_jax.report.page import document, escape, image, table
from lepton_jax.results import canvas, comparable, figures, plots, tables
from lepton_jax.results.differences import differing
from lepton_jax.results.groups import Group, Verdict, group, judge
from lepton_jax.results.runs import Run, find, read_plan
from lepton_jax.workdir import replace_file

_NAMED = {"python": "Python", "jax": "JAX"}  # versions that report.md has; report.html has all


@dataclasses.dataclass(frozen=True)
class Question:
    """What runs are to answer."""

    title: str
    metrics: tuple[str, ...]  # of summary.json, the main one first
    figures: tuple[figures.Figure, ...]
    description: str = ""  # how it was meant, in paragraphs
    parent: str = ""  # what the runs are differences from


def write_sweep(workdir: str | Path) -> Path:
    """Writes the report of a sweep into its folder, and returns the page.

    Figures that do not mean the same in all runs, and drawings that the runs have no data for, are said to be so, and
    the rest is there.

    Raises:
      UserError: there is no plan.json, it is damaged, or names a figure that is unknown or a metric that a complete run
        lacks; or a file cannot be written.
    """
    workdir = Path(workdir)
    plan = read_plan(workdir)
    metrics = plan.get("metrics", [])
    if not isinstance(metrics, list) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise UserError(f"{workdir / 'plan.json'}: metrics={metrics!r}: must be names of summary.json, one at least")
    drawings = tuple(figures.from_json(plan.get("figures") or [])) or (figures.Bars(metrics[0]),)
    texts = {name: str(plan.get(name, "")) for name in ("title", "description", "parent")}
    question = Question(metrics=tuple(metrics), figures=drawings, **texts)
    return write_runs(workdir, find(workdir), question, strict=False)


def write_runs(folder: Path, runs: Sequence[Run], question: Question, strict: bool = True) -> Path:
    """Writes the report of runs into a folder, and returns the page.

    Args:
      folder: gets the files; it is created.
      runs: complete or not.
      question: what they are to answer.
      strict: whether a metric that does not mean the same in all runs is refused; else it has no verdict.

    Raises:
      UserError: a complete run lacks a metric; of `strict`; or a file cannot be written.
    """
    groups = group(runs)
    for metric in question.metrics:  # of each run, before anything is written
        for each in groups:
            each.values(metric)
    verdicts, refusals = _verdicts(groups, question.metrics, strict)
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used for a report ({error.strerror})") from None
    for metric in question.metrics:
        name = metric.replace("/", "_")
        replace_file(folder / "tables" / f"{name}.md", tables.markdown(groups, [metric], verdicts))
        replace_file(folder / "tables" / f"{name}.tex", tables.latex(groups, [metric], verdicts))
    drawn = _drawn(folder, runs, question.figures)
    body = [
        f"<h1>{escape(question.title or 'Report')}</h1>\n", _introduction(question, runs),
        _results(groups, question, verdicts, refusals), *(section for _, section in drawn), _differences(groups),
        _runs(folder, groups, question.metrics), _failures(runs), _setting(runs),
    ]  # fmt: skip
    links = [
        f"![{plots.description(figure)}](figures/{name}.svg)\n"
        for figure, (name, _) in zip(question.figures, drawn, strict=True) if name
    ]  # fmt: skip
    said = [f"{message}.\n" for message in refusals.values()]
    parts = [f"# {question.title or 'Report'}\n", tables.markdown(groups, question.metrics, verdicts), *said, *links,
             _ran_with(runs)]  # fmt: skip
    replace_file(folder / "report.md", "\n".join(parts))
    page = folder / "report.html"
    replace_file(page, document(question.title or "lepton_jax report", "".join(body)))
    return page


def _verdicts(
    groups: Sequence[Group], metrics: Sequence[str], strict: bool
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """Returns (metric -> verdict, metric -> why it has none)."""
    verdicts, refusals = {}, {}
    for metric in metrics:
        try:
            comparable.require_comparable([run for each in groups for run in each.runs], metric)
        except UserError as error:
            if strict:
                raise
            refusals[metric] = str(error)
        else:
            verdicts[metric] = judge(groups, metric)
    return verdicts, refusals


def _drawn(folder: Path, runs: Sequence[Run], wanted: Sequence[figures.Figure]) -> list[tuple[str, str]]:
    """Returns (name of the files, section of the page) of each figure; of one that cannot be drawn, ("", why)."""
    found: list[tuple[str, str]] = []
    for figure in wanted:
        title = plots.description(figure)
        try:
            plot = plots.draw(figure, runs)
        except UserError as error:
            found.append(("", f"<h3>{escape(title)}</h3>\n<p class='note'>Not drawn: {escape(error)}.</p>\n"))
            continue
        name = figures.file_name(figure)
        name += f"_{len(found)}" if name in dict(found) else ""
        paths = canvas.save(plot, folder / "figures", name)
        links = " ".join(f'<a href="figures/{path.name}">{path.suffix[1:].upper()}</a>' for path in paths)
        width = 100 * min(plot.get_figwidth() / 9, 1)  # of the page, so that all figures have letters of one size
        section = f"<h3>{escape(title)}</h3>\n<div style='width: {width:.0f}%'>{image(plot, title)}</div>\n"
        found.append((name, f"{section}<p class='note'>{links}</p>\n"))
    return found


def _introduction(question: Question, runs: Sequence[Run]) -> str:
    paragraphs = [part for part in question.description.split("\n\n") if part.strip()]
    parts = [f"<p>{_with_code(part.strip())}</p>\n" for part in paragraphs]
    complete = sum(run.state == "complete" for run in runs)
    failed = sum(bool(run.failure) for run in runs)
    left = len(runs) - complete - failed
    state = f"{complete} of {len(runs)} runs are complete" + (f", {failed} failed" if failed else "")
    state += f", {left} not yet" if left else ""
    parent = f"Parent: <code>{escape(question.parent)}</code>. " if question.parent else ""
    return f"{''.join(parts)}<p class='note'>{parent}{state}.</p>\n"


def _with_code(text: str) -> str:
    """Returns a text of a docstring, escaped, what is in backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _results(
    groups: Sequence[Group], question: Question, verdicts: dict[str, Verdict], refusals: dict[str, str]
) -> str:
    names = headings(question.metrics)
    head = ["", *(f"{escape(names[metric])} {tables.arrow(metric)}" for metric in question.metrics), "runs"]
    rows = []
    for each in groups:
        cells = []
        for metric in question.metrics:
            mean, std = tables.cell(each, metric)
            text = f"<strong>{mean}</strong>" if tables.is_bold(each, verdicts.get(metric)) else mean
            cells.append(f"{text} ± {std}" if std else text)
        done = f"{len(each.complete)}" + (f" of {len(each.runs)}" if len(each.complete) < len(each.runs) else "")
        rows.append([escape(each.name), *cells, done])
    said = [*tables.notes(groups, question.metrics, verdicts), *(f"{message}." for message in refusals.values())]
    links = " ".join(
        f'<a href="tables/{name}.md">{escape(name)}.md</a> <a href="tables/{name}.tex">.tex</a>'
        for name in (metric.replace("/", "_") for metric in question.metrics)
    )
    return (
        f"<h2>Results</h2>\n{table(rows, head, numbers=range(1, len(head)))}"
        f"{''.join(f'<p>{escape(each)}</p>' for each in said)}\n<p class='note'>{links}</p>\n"
        f"{_p_values(groups, question.metrics, verdicts)}"
    )


def _p_values(groups: Sequence[Group], metrics: Sequence[str], verdicts: dict[str, Verdict]) -> str:
    """Returns each group's p-value against the best one by each metric that was tested."""
    tested = [metric for metric in metrics if metric in verdicts and verdicts[metric].p_values]
    if not tested or len(groups) < 3:  # of two, the sentence has it
        return ""
    names = headings(metrics)
    rows = []
    for each in groups:
        of = [verdicts[metric].p_values.get(each.name) for metric in tested]
        best = [verdicts[metric].best == each.name for metric in tested]
        cells = ["best" if first else "" if p is None else f"{p:.2g}" for p, first in zip(of, best, strict=True)]
        rows.append([escape(each.name), *cells])
    head = ["", *(escape(names[metric].partition(",")[0]) for metric in tested)]
    return f"<h3>p-value against the best</h3>\n{table(rows, head, numbers=range(1, len(head)))}"


def _differences(groups: Sequence[Group]) -> str:
    """Returns in which fields the configs differ, a row a group; of a sweep, also of runs that have not begun."""
    firsts = [next((run for run in each.runs if run.config), each.runs[0]) for each in groups]
    begun = [run for run in firsts if run.config]
    fields = differing([run.config for run in begun])
    of = {run.folder: dict(zip(fields, values, strict=True)) for run, values in
          zip(begun, zip(*fields.values(), strict=True), strict=False)}  # fmt: skip
    rows = []
    for each, first in zip(groups, firsts, strict=True):
        values = of.get(first.folder, first.changes)
        cells = [f"<code>{escape(values[path])}</code>" if path in values else "" for path in fields]
        rows.append([escape(each.name), *cells])
    if not fields:
        return "<h2>Configs</h2>\n<p class='note'>They differ in no field but the seed.</p>\n"
    head = ["", *(f"<code>{escape(path)}</code>" for path in fields)]
    if len(fields) > len(groups):  # the longer side downwards
        head, *rows = (list(column) for column in zip(head, *rows, strict=True))
    return f"<h2>Configs, where they differ</h2>\n{table(rows, head)}"


def _runs(folder: Path, groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """Returns every number with the run behind it."""
    names, rows = headings(metrics), []
    for each in groups:
        for run in each.runs:
            page = run.folder / "report.html"
            name = escape(run.hash or run.folder.name)
            link = f'<a href="{escape(os.path.relpath(page, folder))}">{name}</a>' if page.is_file() else name
            if run.state == "complete":
                values = [escape(shown(metric, run.value(metric))) for metric in metrics]
                state = escape(shown("wall_seconds", run.summary.get("wall_seconds")))
            else:
                begun = run.folder.is_dir()
                values, state = [""] * len(metrics), "failed" if run.failure else "not complete" if begun else "not run"
            rows.append([escape(each.name), str(run.seed), f"<code>{link}</code>", *values, state])
    head = ["", "seed", "run", *(escape(names[metric].partition(",")[0]) for metric in metrics), "wall time"]
    return f"<h2>Runs</h2>\n{table(rows, head, css='runs', numbers=[1, *range(3, len(head))])}"


def _failures(runs: Sequence[Run]) -> str:
    failed = [run for run in runs if run.failure]
    if not failed:
        return ""
    rows = [
        (
            escape(run.name),
            str(run.seed),
            f"<code>{escape(run.hash)}</code>",
            f"<code>{escape(run.failure[-600:])}</code>",
        )
        for run in failed
    ]
    return f"<h2>Failures</h2>\n{table(rows, ('', 'seed', 'run', 'why'))}"


def _setting(runs: Sequence[Run]) -> str:
    """Returns what the runs ran with: each value once, with the number of runs that have it."""
    begun = [run for run in runs if run.record]

    def counted(values: Sequence[str]) -> str:
        found = dict.fromkeys(values)
        if len(found) == 1:
            return escape(values[0])
        return "<br>".join(f"{escape(value)} ({values.count(value)} runs)" for value in found)

    versions = [
        ", ".join(f"{name} {version}" for name, version in (run.record.get("versions") or {}).items()) for run in begun
    ]
    rows = [
        ("wall time", escape(_wall_time(runs) or "unknown")),
        ("devices", counted([run.devices for run in begun])),
        ("versions", counted(versions)),
        ("git revision", counted([run.record.get("git_revision") or "unknown" for run in begun])),
    ]  # fmt: skip
    return f"<h2>Ran with</h2>\n{table(rows, css='setup')}" if begun else ""


def _ran_with(runs: Sequence[Run]) -> str:
    """Returns the same as a line of Markdown; nothing where no run has begun."""
    begun = [run for run in runs if run.record]
    versions = [run.record.get("versions") or {} for run in begun]
    parts = [
        [_wall_time(runs)],
        [run.devices for run in begun],
        [f"{label} {each[name]}" for each in versions for name, label in _NAMED.items() if name in each],
        [run.record["git_revision"][:10] for run in begun if run.record.get("git_revision")],
    ]
    said = [", ".join(filter(None, dict.fromkeys(part))) for part in parts]
    said[-1] = said[-1] and f"revision {said[-1]}"
    return f"Ran with: {'; '.join(filter(None, said))}.\n" if begun else ""


def _wall_time(runs: Sequence[Run]) -> str:
    seconds = [run.summary.get("wall_seconds") for run in runs if run.state == "complete"]
    known = [value for value in seconds if isinstance(value, (int, float))]
    if not known:
        return ""
    spans = dict.fromkeys(map(_time, (min(known), max(known))))
    return f"{_time(sum(known))} in all, {' to '.join(spans)} a run"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
