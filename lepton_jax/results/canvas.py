"""Figures that no window knows of, and styles that are told apart in grey and by the colour-blind."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

from lepton_jax.workdir import replace_file

FORMS = ("pdf", "svg", "png")
INK, GREY, LIGHT = "#1f2328", "#59636e", "#eaeef2"
# Okabe and Ito's colours (2008) but for the yellow, which white paper swallows, from dark to light in turns.
_COLOURS = ("#0b3d91", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1f2328", "#8c959f")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (8, 2, 3, 2)))
# What makes the same figure the same bytes, and embeds fonts as journals want them.
_SETTINGS: Any = {"svg.hashsalt": "lepton_jax", "pdf.fonttype": 42}
# Fonts that have Chinese letters on Linux, macOS and Windows, for names that need them; matplotlib's own has none.
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
             "PingFang SC", "Microsoft YaHei", "SimHei")  # fmt: skip
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


@dataclasses.dataclass(frozen=True)
class Style:
    """How the curve or the point of one of several things is drawn."""

    colour: str
    marker: str
    line: Any


def style(number: int) -> Style:
    """Returns the style of the n-th thing; no two of the first 120 have both the same colour, marker and line."""
    return Style(*(kinds[number % len(kinds)] for kinds in (_COLOURS, _MARKERS, _LINES)))


def blank(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure of a size in inches that no window knows of, whose texts may be Chinese."""
    return _figures()(figsize=(width, height), layout="constrained")


@functools.cache
def _figures() -> Any:
    from matplotlib.figure import Figure  # here, because importing it takes a second
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    class Canvas(Figure):
        """Gives its texts their fonts when it is drawn: only then are all of them there."""

        def draw(self, renderer: Any) -> None:
            installed = {font.name for font in fontManager.ttflist}
            families = [family for family in _FAMILIES if family in installed]
            for text in self.findobj():
                if isinstance(text, Text) and not text.get_text().isascii():
                    text.set_fontfamily(families)
            super().draw(renderer)

    return Canvas


def figure(width: float, x: str, y: str, height: float = 3.0) -> tuple[Any, Any]:
    """Returns a matplotlib figure of a size in inches that no window knows of, and its axes with their names."""
    figure = blank(width, height)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    return figure, axes


def steps(width: float, y: str, height: float = 3.0) -> tuple[Any, Any]:
    """Returns `figure` over the steps of training, which are whole numbers."""
    plot, axes = figure(width, "step", y, height)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return plot, axes


def encoded(figure: Any, form: str) -> bytes:
    """Returns a figure as a file of a form of FORMS, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format=form, metadata=_NO_DATE[form], dpi=200)
    return buffer.getvalue()


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Writes a figure as `folder/name.pdf`, `.svg` and `.png`, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in FORMS]
    for path, form in zip(paths, FORMS, strict=True):
        replace_file(path, encoded(figure, form))
    return paths
