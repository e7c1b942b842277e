"""Drawings of the figures that `figures` describes, told apart by shape as well as by colour."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.display import headings, is_share, last_name, lower_is_better, words
from lepton_jax.results import canvas, figures, scaling
from lepton_jax.results.differences import field, named
from lepton_jax.results.groups import Group, group, statistic
from lepton_jax.results.runs import Run
from lepton_jax.workdir import read_jsonl

_WIDTH, _HEIGHT = 6.4, 3.6  # inches, without the legend beside it
_NAME = 34  # characters of a line of a name
_LABELS = 5  # names that are written beside points; of more, numbers are
_MANY = 30  # points, above which a curve's markers are thinned


def draw(figure: figures.Figure, runs: Sequence[Run]) -> Any:
    """Returns a figure of the complete runs among some, a matplotlib Figure that no window knows of.

    Raises:
      UserError: none is complete, they lack what the figure shows, or it cannot be shown.
    """
    groups = [each for each in group(runs) if each.complete]
    if not groups:
        raise UserError(f"{figures.file_name(figure)}: no run is complete")
    drawings: dict[type, Callable[..., Any]] = {
        figures.Curves: _curves, figures.Bars: _bars, figures.Lines: _lines, figures.Pareto: _pareto,
        figures.Scaling: _scaling,
    }  # fmt: skip
    return drawings[type(figure)](figure, groups)


def _curves(figure: figures.Curves, groups: Sequence[Group]) -> Any:
    plot, axes = canvas.steps(_WIDTH, label(figure.metric), _HEIGHT)
    number = 0
    for each in groups:
        history = [_history(run, figure) for run in each.complete.values()]
        steps = sorted(set.intersection(*map(set, history)))  # of seeds that ended early, what all have
        if not steps:
            continue
        values = np.array([[line[step] for step in steps] for line in history]) * scale(figure.metric)
        _band(axes, steps, values, each.name, number)
        number += 1
    if not number:
        known = {
            name for each in groups for run in each.complete.values() for line in _log(run, figure) for name in line
        }
        raise UserError(
            f"no run logged {figure.metric!r}; logged are {', '.join(sorted(known - {'step'})) or 'no metrics'}"
        )
    _legend(plot, axes, number)
    return plot


def _log(run: Run, figure: figures.Curves) -> list[dict[str, Any]]:
    chained = run.config.get("stage") == "quickstart"
    folder = run.folder / (figure.part or "finetune") if chained else run.folder
    return read_jsonl(folder / "metrics.jsonl")


def _history(run: Run, figure: figures.Curves) -> dict[int, float]:
    """Returns step -> value."""
    return {
        line["step"]: float(line[figure.metric]) for line in _log(run, figure) if line.get(figure.metric) is not None
    }


def _bars(figure: figures.Bars, groups: Sequence[Group]) -> Any:
    found = [statistic(each, figure.metric) for each in groups]
    times = scale(figure.metric)
    plot, axes = canvas.figure(_WIDTH, label(figure.metric), "", 0.7 + 0.34 * len(groups))
    places = np.arange(len(groups))
    means = np.array([each.mean for each in found]) * times
    points = [np.array(list(each.values.values())) * times for each in found]
    everything = np.concatenate(points)
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        raise UserError(f"{figure.metric!r} is a number in no run")
    # Bars that differ by less than a quarter are cut at their foot, and the axis says so.
    low, high = everything.min(), everything.max()
    step = 10.0 ** math.floor(math.log10(max(high - low, 0.01 * abs(high), 1e-9)))
    foot = math.floor(low / step - 1) * step if low > 0.75 * high > 0 else min(0.0, low)
    axes.barh(places, means - foot, left=foot, height=0.62, color="#cfdcf3", edgecolor="#0b3d91", linewidth=0.8)
    stds = [each.std * times for each in found]
    axes.errorbar(means, places, xerr=np.nan_to_num(stds), fmt="none", ecolor=canvas.INK, capsize=3, linewidth=1.2)
    for place, values in zip(places, points, strict=True):
        axes.plot(values, np.full(len(values), place - 0.17), "o", markersize=3.4, color="#d55e00",
                  markeredgecolor="white", markeredgewidth=0.5, zorder=3)  # fmt: skip
    axes.set_yticks(places, [_wrapped(each.name) for each in groups])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    if foot:
        axes.set_xlim(foot, None)
        axes.set_xlabel(f"{label(figure.metric)} (the axis begins at {foot:.4g})")
    _seeds_note(axes, found)
    return plot


def _lines(figure: figures.Lines, groups: Sequence[Group]) -> Any:
    runs = [run for each in groups for run in each.complete.values()]
    series: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        name = named(figure.by, _of(run, figure.by)) if figure.by else ""
        x, y = _amount(run, figure.x), run.number(figure.y)
        if figure.log_x and not x > 0:
            raise UserError(f"{run.folder}: {figure.x}={x:g} has no place on a logarithmic axis; set log_x=False")
        series.setdefault(name, {}).setdefault(x, []).append(y * scale(figure.y))
    plot, axes = canvas.figure(_WIDTH, label(figure.x), label(figure.y), _HEIGHT)
    for number, (name, values) in enumerate(series.items()):
        places = sorted(values)
        means = np.array([np.mean(values[x]) for x in places])
        stds = np.array([np.std(values[x], ddof=1) if len(values[x]) > 1 else 0.0 for x in places])
        _line(axes, places, means, stds, name, number)
    if figure.log_x:
        axes.set_xscale("log")
        every = sorted({x for values in series.values() for x in values})
        axes.set_xticks(every, [f"{x:,g}" for x in every])
        axes.minorticks_off()
    _legend(plot, axes, len(series) if figure.by else 0)
    return plot


def _of(run: Run, name: str) -> Any:
    """Returns a field or metric by which lines are told apart; of an older config that lacks the field, its default."""
    found = field(run.config, name)
    return run.value(name) if found is None else found


def _amount(run: Run, name: str) -> float:
    count = run.summary.get("finetune.data.train.examples")
    return float(count) if last_name(name) == "max_examples" and not run.number(name) and count else run.number(name)


def _pareto(figure: figures.Pareto, groups: Sequence[Group]) -> Any:
    plot, axes = canvas.figure(_WIDTH, label(figure.x), label(figure.y), 4.2)
    points, names = [], []
    for number, each in enumerate(groups):
        x, y = (statistic(each, metric) for metric in (figure.x, figure.y))
        if not (math.isfinite(x.mean) and math.isfinite(y.mean)):
            continue
        place = (x.mean * scale(figure.x), y.mean * scale(figure.y))
        bars = np.nan_to_num([x.std * scale(figure.x), y.std * scale(figure.y)])
        style = canvas.style(number)
        names.append(each.name)
        points.append(place)
        axes.errorbar(*place, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=style.colour, elinewidth=0.9, alpha=0.5)
        axes.plot(*place, style.marker, color=style.colour, markersize=6.5, markeredgecolor="white",
                  markeredgewidth=0.6, zorder=3, label=_wrapped(f"{len(names)}  {each.name}"))  # fmt: skip
    if not points:
        raise UserError(f"no run has both {figure.x!r} and {figure.y!r} as numbers")
    signs = np.array([1 if lower_is_better(metric) else -1 for metric in (figure.x, figure.y)])
    best = front(np.array(points) * signs)
    line = np.array(points)[best][np.argsort(np.array(points)[best, 0])]
    axes.plot(*line.T, color=canvas.GREY, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    axes.margins(0.12)
    ways = ["lower" if sign > 0 else "higher" for sign in signs]
    axes.set_xlabel(f"{label(figure.x)} ({ways[0]} is better)")
    axes.set_ylabel(f"{label(figure.y)} ({ways[1]} is better)")
    if len(names) > _LABELS:  # names would cover each other: numbers in their places, and names beside the axes
        numbers = [str(number) for number in range(1, len(names) + 1)]
        _legend(plot, axes, len(names))
        _place_labels(plot, axes, points, numbers, best)
    else:
        _place_labels(plot, axes, points, [_wrapped(name) for name in names], best)
    return plot


def front(costs: np.ndarray) -> np.ndarray:
    """Returns which of some points [n, 2], of two costs, are beaten by no other one, which would be at least as low in
    both and lower in one. bool [n]."""
    others = costs[:, None] - costs[None]  # point i minus point j
    beaten = np.logical_and(np.all(others >= 0, axis=2), np.any(others > 0, axis=2))
    return np.logical_not(np.any(beaten, axis=1))


def _place_labels(plot: Any, axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str], best: Any) -> None:
    """Writes each name beside its point, where it covers the least of what is there already."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground="white")
    drawn = FigureCanvasAgg(plot)
    drawn.draw()  # fixes the layout, so that places are known
    renderer = drawn.get_renderer()
    taken = [np.array([*(place - 5), *(place + 5)]) for place in axes.transData.transform(np.array(points))]
    frame = axes.get_window_extent(renderer).extents
    for (x, y), name, first in sorted(zip(points, names, best, strict=True), key=lambda point: -point[0][1]):
        found = []
        for radius in (7, 14, 24, 38):
            for angle in range(0, 360, 30):
                dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
                text = axes.annotate(
                    name, (x, y), (dx, dy), textcoords="offset points", fontsize=8, color=canvas.INK,
                    ha="left" if dx > 1 else "right" if dx < -1 else "center",
                    va="bottom" if dy > 1 else "top" if dy < -1 else "center", fontweight="bold" if first else "normal",
                    arrowprops={"arrowstyle": "-", "color": canvas.GREY, "linewidth": 0.5} if radius > 7 else None,
                    path_effects=[halo], zorder=4,
                )  # fmt: skip
                box = text.get_window_extent(renderer).extents
                covered = sum(_overlap(box, other) for other in taken)
                outside = _area(box) - _overlap(box, frame)
                found.append((covered + 3 * outside + radius, len(found), text, box))
        chosen = min(found)
        for candidate in found:
            if candidate is not chosen:
                candidate[2].remove()
        taken.append(chosen[3])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(size[0] * size[1]) if (size > 0).all() else 0.0


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _scaling(figure: figures.Scaling, groups: Sequence[Group]) -> Any:
    runs = [run for each in groups for run in each.complete.values()]
    axes_names = [name for name in (figure.parameters, figure.tokens) if name]
    if not axes_names:
        raise UserError("a figure 'scaling' needs parameters, tokens or both")
    values = [np.array([run.number(name) for run in runs]) for name in axes_names]
    losses = np.array([run.number(figure.y) for run in runs])
    fit = scaling.fit(values, losses)
    plot, axes = canvas.figure(_WIDTH, label(axes_names[-1]), label(figure.y), _HEIGHT)
    axes.set_xscale("log")
    axes.set_yscale("log")
    along = np.geomspace(values[-1].min() / 1.3, values[-1].max() * 1.3, 100)
    sizes = np.unique(values[0]) if len(values) > 1 else np.array([math.nan])
    for number, size in enumerate(sizes):
        style, there = canvas.style(number), values[0] == size if len(values) > 1 else np.ones(len(runs), bool)
        axes.plot(values[-1][there], losses[there], style.marker, color=style.colour, markersize=5)
        curve = fit.law(size, along) if len(values) > 1 else fit.law(along)
        name = _compact(size) if len(values) > 1 else ""
        axes.plot(along, curve, color=style.colour, linestyle=style.line, linewidth=1.2)
        axes.plot([], [], color=style.colour, linestyle=style.line, marker=style.marker, label=name)
    letters = ("N", "D") if len(values) > 1 else ("x",)
    terms = [f"{factor:.3g} / ${letter}^{{{exponent:.2f}}}$" for factor, exponent, letter in
             zip(fit.law.factors, fit.law.exponents, letters, strict=True)]  # fmt: skip
    spans = [f"{letter}: {low:.2f} to {high:.2f}" for letter, (low, high) in
             zip(letters, (fit.exponent(place) for place in range(len(letters))), strict=True)]  # fmt: skip
    if fit.law.constant > 1e-3 * losses.min():  # else the runs know of no floor
        terms.insert(0, f"{fit.law.constant:.3g}")
    axes.set_title(f"{' + '.join(terms)}\nexponents, 95%: {', '.join(spans)}", fontsize=9)
    _plain_ticks(axes.yaxis)
    if len(values) > 1:
        _legend(plot, axes, len(sizes), label(figure.parameters))
    return plot


def _plain_ticks(axis: Any) -> None:
    """Writes the numbers of a logarithmic axis that spans little as plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_major_locator(MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _compact(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _band(axes: Any, steps: Sequence[float], values: np.ndarray, name: str, number: int) -> None:
    """Draws the mean of values [seeds, steps], and where one standard deviation to both sides lies."""
    stds = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    _line(axes, steps, values.mean(0), stds, name, number)


def _line(axes: Any, x: Sequence[float], means: np.ndarray, stds: np.ndarray, name: str, number: int) -> None:
    style, every = canvas.style(number), max(len(x) // 10, 1) if len(x) > _MANY else 1
    if len(x) == 1:
        axes.errorbar(x, means, yerr=stds, fmt="none", ecolor=style.colour, capsize=3)
    axes.fill_between(x, means - stds, means + stds, color=style.colour, alpha=0.1, linewidth=0)
    axes.plot(x, means, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4.5, linewidth=1.5,
              markevery=every, markeredgecolor="white", markeredgewidth=0.4, label=_wrapped(name))  # fmt: skip


def _legend(plot: Any, axes: Any, count: int, title: str = "") -> None:
    """Sets the names of lines beside the axes, where they cover none of them."""
    if count < 1:
        return
    handles, names = axes.get_legend_handles_labels()
    lines = sum(name.count("\n") + 1.4 for name in names) + bool(title)
    plot.set_size_inches(_WIDTH + 2.4, max(plot.get_figheight(), 0.2 + 0.145 * lines))
    plot.legend(
        handles, names, loc="outside right upper", frameon=False, fontsize=8, handlelength=3.4, title=title or None,
        title_fontsize=8,
    )  # fmt: skip


def _seeds_note(axes: Any, found: Sequence[Any]) -> None:
    if any(each.n > 1 for each in found):
        axes.set_title("mean, standard deviation, and each seed", fontsize=8, color=canvas.GREY, loc="right")


def label(metric: str) -> str:
    """Returns a metric or field as an axis calls it."""
    if "*" in metric:
        return " x ".join(words(last_name(part.strip())) for part in metric.split("*"))
    return headings([metric])[metric] if "/" not in metric else words(metric) + (", %" if is_share(metric) else "")


def scale(metric: str) -> float:
    """Returns what a metric's values are multiplied by on an axis: shares are in percent."""
    return 100.0 if is_share(metric) else 1.0


def _wrapped(name: str) -> str:
    """Returns a name in lines, which end after a comma where one may."""
    lines = [""]
    for part in name.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= _NAME else [*filter(None, lines[:-1]), *filter(None, [
            f"{lines[-1]}," if lines[-1] else ""]), *textwrap.wrap(part, _NAME)]  # fmt: skip
    return "\n".join(lines)


def description(figure: figures.Figure) -> str:
    """Returns what a figure shows, in words."""
    match figure:
        case figures.Curves(metric):
            return f"{_plain(metric)} over the steps of training"
        case figures.Bars(metric):
            return f"{_plain(metric)} of each setting"
        case figures.Lines(x, y, by):
            return f"{_plain(y)} over {_plain(x)}" + (f" by {words(last_name(by))}" if by else "")
        case figures.Pareto(x, y):
            return f"{_plain(y)} against {_plain(x)}, and the front of the best"
        case figures.Scaling(y):
            return f"{_plain(y)} by scale, and the law that fits"


def _plain(metric: str) -> str:
    return label(metric).removesuffix(", %")
