"""Groups by metrics as tables for a README and for a paper: mean and deviation over seeds, and what a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lepton_jax.evaluate.display import headings, is_share, lower_is_better, spread, unit
from lepton_jax.results.groups import LEVEL, Group, Verdict, statistic

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip


def markdown(groups: Sequence[Group], metrics: Sequence[str], verdicts: Mapping[str, Verdict]) -> str:
    """Returns a table in Markdown, a row a group, with a note below it.

    Args:
      groups: see `groups.group`.
      metrics: names in summary.json, one a column.
      verdicts: by metric; a mean is bold where one says that it is the best. A metric may lack one.
    """
    head = ["", *(f"{name} {arrow(metric)}" for metric, name in headings(metrics).items()), "runs"]
    rows = []
    for group in groups:
        cells = []
        for metric in metrics:
            mean, std = cell(group, metric)
            mean = f"**{mean}**" if is_bold(group, verdicts.get(metric)) else mean
            cells.append(f"{mean} ± {std}" if std else mean)
        rows.append([group.name.replace("|", "\\|"), *cells, str(len(group.complete))])
    lines = [head, ["---", *["---:"] * (len(metrics) + 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    first, *others = notes(groups, metrics, verdicts)
    return "\n\n".join([table, first, *(["\n".join(f"- {each}" for each in others)] if others else [])]) + "\n"


def latex(groups: Sequence[Group], metrics: Sequence[str], verdicts: Mapping[str, Verdict]) -> str:
    """Returns the table of `markdown` in LaTeX, for the package booktabs."""
    arrows = {True: r"$\downarrow$", False: r"$\uparrow$"}
    head = [
        "",
        *(f"{tex(name)} {arrows[lower_is_better(metric)]}" for metric, name in headings(metrics).items()),
        "$n$",
    ]
    rows = []
    for group in groups:
        cells = []
        for metric in metrics:
            mean, std = map(tex, cell(group, metric))
            mean = rf"\textbf{{{mean}}}" if is_bold(group, verdicts.get(metric)) else mean
            cells.append(rf"{mean} $\pm$ {std}" if std else mean)
        rows.append([tex(group.name), *cells, str(len(group.complete))])
    line = " & ".join
    body = "\n".join(f"{line(row)} \\\\" for row in rows)
    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}\n\\toprule\n"
        f"{line(head)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\n"
        + "".join(f"% {each}\n" for each in notes(groups, metrics, verdicts))
    )


def notes(groups: Sequence[Group], metrics: Sequence[str], verdicts: Mapping[str, Verdict]) -> list[str]:
    """Returns what a reader of a table must know: of how many runs it is, then what is best by which test."""
    counts = [len(group.complete) for group in groups]
    fewest, most = min(counts, default=0), max(counts, default=0)
    if most > 1:
        many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        first = f"Mean ± standard deviation over {many} seeds, {sum(counts)} runs."
    else:
        first = f"One seed each, {sum(counts)} runs." if most else "No run is complete."
    if any(verdict.sure for verdict in verdicts.values()):
        first += " Bold: better than every other one, by the test below."
    names = {metric: name.partition(",")[0] for metric, name in headings(metrics).items()}
    return [first, *(f"{names[each]}: {sentence(verdicts[each])}." for each in metrics if each in verdicts)]


def sentence(verdict: Verdict) -> str:
    """Returns a verdict in words."""
    if not verdict.best:
        return verdict.reason
    if not verdict.test:
        return f"{verdict.best} is ahead; no test, for {verdict.reason}"
    seeds = f"{verdict.seeds} {'seed' if verdict.seeds == 1 else 'seeds'}"
    over = f"{verdict.examples:,} examples, {seeds}" if verdict.examples else seeds
    if verdict.seeds == 1:
        over += ", so of these models alone"
    by = f"by the {verdict.test} ({over})" + (" with Holm's correction" if len(verdict.p_values) > 1 else "")
    largest = max(verdict.p_values.values())
    if verdict.sure:
        than = "every other" if len(verdict.p_values) > 1 else next(iter(verdict.p_values))
        return f"{verdict.best} is better than {than}, p {_p(largest)} {by}"
    unsure = [other for other, value in verdict.p_values.items() if value >= LEVEL]
    named = ", ".join(unsure[:3]) + (f" and {len(unsure) - 3} more" if len(unsure) > 3 else "")
    most = "of" if len(verdict.p_values) == 1 else "up to"
    return f"{verdict.best} is ahead, but not surely of {named}, p {most} {largest:.2g} {by}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"at most {value:.2g}"


def cell(group: Group, metric: str) -> tuple[str, str]:
    """Returns (mean, deviation) of a group as they are read, without the unit that the heading has."""
    found = statistic(group, metric)
    mean, std = spread(metric, found.mean, found.std)
    mark = "" if is_share(metric) or mean == "-" else unit(metric)
    return mean + mark, std + mark if std else ""


def arrow(metric: str) -> str:
    """Returns which direction is better."""
    return "↓" if lower_is_better(metric) else "↑"


def is_bold(group: Group, verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.sure and group.name == verdict.best


def tex(text: str) -> str:
    """Returns a text in which LaTeX's own characters are escaped."""
    return "".join(_ESCAPES.get(character, character) for character in text)
