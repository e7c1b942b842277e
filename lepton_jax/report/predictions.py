"""Predictions as tables and plots: whatever the labels are, what is right, what is wrong, and for which texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from lepton_jax.report.page import escape, image, table
from lepton_jax.results import canvas

_EXAMPLES = 8  # of each kind that a page shows
_LABELS = 20  # rows of a confusion matrix; further labels are left out
_CHARACTERS = 240  # of an example's text

Line = dict[str, Any]


def predictions(lines: list[Line], task: str) -> str:
    """Returns what a task's predictions show: a confusion matrix, a scatter plot or a table, and examples."""
    if not lines:
        return ""
    if task == "multi_label":
        sets = [(set(line["label"]), set(line["prediction"])) for line in lines]
        return _by_class("Classes", sets) + _worst(lines, lambda line: set(line["label"]) == set(line["prediction"]))
    if task == "token_classification":
        spans = [({tuple(s) for s in line["label"]}, {tuple(s) for s in line["prediction"]}) for line in lines]
        return _by_class("Types of spans", spans, key=lambda span: span[2]) + _worst(
            lines, lambda line: sorted(line["label"]) == sorted(line["prediction"])
        )
    if all(isinstance(line[key], (int, float)) for line in lines for key in ("label", "prediction")):
        by_error = sorted(lines, key=lambda line: -abs(line["label"] - line["prediction"]))
        plot, axes = canvas.figure(5.0, "label", "prediction")
        labels, guesses = ([line[key] for line in lines] for key in ("label", "prediction"))
        axes.scatter(labels, guesses, s=6, color="#0b3d91", alpha=0.4, linewidths=0)
        axes.plot([min(labels), max(labels)], [min(labels), max(labels)], color="#8c959f", linewidth=1, linestyle="--")
        return (
            f'<h3>Predictions</h3>\n<div class="figures">{image(plot, "Predictions against labels")}</div>\n'
            + examples("Largest errors", by_error[:_EXAMPLES])
            + examples("Smallest errors", by_error[: -_EXAMPLES - 1 : -1])
        )
    counts = Counter((line["label"], line["prediction"]) for line in lines)
    return confusion(counts) + _worst(lines, lambda line: line["label"] == line["prediction"])


def _worst(lines: list[Line], is_right: Callable[[Line], bool]) -> str:
    """Returns the mistakes with the largest loss, without losses the most confident ones, and the first right ones."""
    right, wrong = [line for line in lines if is_right(line)], [line for line in lines if not is_right(line)]
    by_loss = all("loss" in line for line in lines)
    wrong.sort(key=lambda line: -line["loss" if by_loss else "score"])
    order = "the largest loss" if by_loss else "the most confident"
    return examples(f"Mistakes, {order} first ({len(wrong):,} of {len(lines):,})", wrong[:_EXAMPLES]) + examples(
        f"Right predictions, the first few ({len(right):,} of {len(lines):,})", right[:_EXAMPLES]
    )


def _by_class(title: str, pairs: list[tuple[set[Any], set[Any]]], key: Callable[[Any], str] = str) -> str:
    """Returns precision, recall and F1 of each class of sets (label, prediction), the most frequent ones first."""
    there, said, right = (
        Counter(key(each) for pair in pairs for each in of(*pair))
        for of in (lambda a, b: a, lambda a, b: b, lambda a, b: a & b)
    )
    rows = []
    for name in sorted(there | said, key=lambda name: (-there[name], name)):
        figures = (
            right[name] / max(said[name], 1), right[name] / max(there[name], 1),
            2 * right[name] / max(said[name] + there[name], 1),
        )  # fmt: skip
        rows.append((escape(name), f"{there[name]:,}", *(f"{100 * value:.1f}%" for value in figures)))
    header = ("", "examples", "precision", "recall", "f1")
    return f"<h3>{escape(title)}</h3>\n{table(rows, header, numbers=range(1, 5))}"


def confusion(counts: Counter[tuple[Any, Any]]) -> str:
    """Returns a table of labels (rows) by predictions (columns), shaded by the share of the row."""
    totals: Counter[Any] = Counter()
    for pair, count in counts.items():
        for name in set(pair):
            totals[name] += count
    names = sorted((name for name, _ in totals.most_common(_LABELS)), key=str)
    left_out = (
        f"<p class='note'>The {_LABELS} most frequent of {len(totals)} labels.</p>\n" if len(totals) > _LABELS else ""
    )
    rows = ["<tr><th></th>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "<th>recall</th></tr>\n"]
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
        rows.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}<td>{recall}</td></tr>\n")
    return (
        "<h3>Confusion matrix</h3>\n<p class='note'>Rows are the true labels, columns the predictions.</p>\n"
        f'{left_out}<table class="matrix">\n{"".join(rows)}</table>\n'
    )


def examples(title: str, lines: list[Line]) -> str:
    """Returns a table of texts with their labels, predictions and scores; spans are marked in the text."""
    if not lines:
        return ""
    columns = [name for name in ("label", "prediction", "score", "loss") if name in lines[0]]
    rows = [(_text(line), *(_cell(line, name) for name in columns)) for line in lines]
    numbers = [place for place, name in enumerate(columns, 1) if name in ("score", "loss")]
    return f"<h3>{escape(title)}</h3>\n{table(rows, ('text', *columns), css='examples', numbers=numbers)}"


def _text(line: Line) -> str:
    """Returns the beginning of a text, and of the second one of a pair, with the predicted spans marked."""
    text, marks = line["text"], line["prediction"] if _has_spans(line) else []
    html, place = "", 0
    for start, end, name in marks:
        if end <= _CHARACTERS:
            html += escape(text[place:start]) + f"<mark>{escape(text[start:end])} <small>{escape(name)}</small></mark>"
            place = end
    html += escape(text[place:_CHARACTERS]) + (" ..." if len(text) > _CHARACTERS else "")
    second = line.get("pair")
    return html if second is None else f"{html}<br>+ {escape(second[:_CHARACTERS])}"


def _cell(line: Line, name: str) -> str:
    value = line.get(name, "")
    if _has_spans(line) and isinstance(value, list):
        value = "; ".join(f"{kind}: {line['text'][start:end]}" for start, end, kind in value) or "none"
    elif isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return escape(f"{value:.3f}" if isinstance(value, float) else value)


def _has_spans(line: Line) -> bool:
    return any(
        isinstance(value, list) and value and isinstance(value[0], list)
        for value in (line.get("label"), line.get("prediction"))
    )
