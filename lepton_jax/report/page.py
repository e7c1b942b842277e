"""The parts that pages are made of: style, tables and images."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lepton_jax.results import canvas

STYLE = """
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
mark { background: #dbe7fb; padding: 0 .2em; border-bottom: 2px solid #0b3d91; }
mark small { color: #0b3d91; }
.examples td:first-child { overflow-wrap: anywhere; width: 62%; }
.setup td:first-child { white-space: nowrap; }
.runs code { white-space: nowrap; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
               h2, h3 { break-after: avoid; } tr, img { break-inside: avoid; } }
@media (max-width: 45rem) { .figures { grid-template-columns: 1fr; } }
"""


def escape(value: Any) -> str:
    return html.escape(str(value))


def document(title: str, body: str) -> str:
    """Returns a whole page of a title, which is text, and a body, which is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(
    rows: Iterable[Sequence[str]], header: Sequence[str] = (), css: str = "", numbers: Collection[int] = ()
) -> str:
    """Returns an HTML table of cells that are HTML already; the columns `numbers` are aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if column in numbers else "" for column in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
            + "</tr>\n"
        )

    head = f"<thead>{line(header, 'th')}</thead>\n" if header else ""
    return f'<table class="{css}">\n{head}<tbody>\n{"".join(line(row, "td") for row in rows)}</tbody>\n</table>\n'


def image(figure: Any, description: str) -> str:
    """Returns a figure as an <img> that holds its own SVG, the same bytes for the same figure."""
    data = base64.b64encode(canvas.encoded(figure, "svg")).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'
