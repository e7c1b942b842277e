"""Scores drawn on their text, and attention as pictures.

What colour says, something else says too: what speaks for the target is blue and underlined, what speaks against it
orange with a dotted line above, and the stronger, the darker and the thicker the line. Colours are from Okabe and Ito
(2008), which the colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_jax.report.page import escape
from lepton_jax.results.canvas import blank, figure

if TYPE_CHECKING:
    from lepton_jax.attribution.attention import AttentionMaps
    from lepton_jax.attribution.gradients import Attribution

_FOR, _AGAINST = (0, 114, 178), (230, 159, 0)
_DARKEST = 0.6  # opacity of the strongest word: black on it still has a contrast of 6
_LEAST = 0.04  # of the largest score: what is weaker is not marked
_LEGEND = "underlined: for it; dotted above: against it"


def as_html(text: str, scores: Sequence[tuple[int, int, float]], caption: str = "", largest: float = 0.0) -> str:
    """Returns a text as HTML, escaped, in which words with a score are marked; the score itself shows on hovering.

    Args:
      text: any text.
      scores: (start, end, score) of parts text[start:end], in order, without overlap.
      caption: a line above it.
      largest: the magnitude that is drawn darkest; 0: the largest one of these scores.
    """
    top = largest or max((abs(score) for _, _, score in scores), default=0.0)
    parts, place = [], 0
    for start, end, score in scores:
        parts += [escape(text[place:start]), _mark(text[start:end], score, score / top if top else 0.0)]
        place = end
    parts.append(escape(text[place:]))
    head = f"{caption} ({_LEGEND})" if caption else _LEGEND
    return (
        '<div style="color: #1f2328; background: #fff; padding: .3em .6em; max-width: 48em">'
        f'<div style="font-size: .85em; color: #59636e">{escape(head)}</div>'
        f'<div style="line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere">{"".join(parts)}</div></div>'
    )


def _mark(word: str, score: float, share: float) -> str:
    strength = min(abs(share), 1.0)
    if strength < _LEAST:
        return f'<span title="{score:+.3f}">{escape(word)}</span>'
    colour = ", ".join(map(str, _FOR if share > 0 else _AGAINST))
    line = "border-bottom: {}px solid #00456b" if share > 0 else "border-top: {}px dotted #7a5200"
    style = f"background: rgba({colour}, {_DARKEST * strength:.2f}); {line.format(1 + round(2 * strength))}"
    return f'<span title="{score:+.3f}" style="{style}; padding: 0 .1em">{escape(word)}</span>'


def draw_words(attribution: Attribution) -> Any:
    """Returns a matplotlib figure of the words of a text, from the first one down, and what each adds."""
    words = attribution.words
    picture, axes = figure(6.0, f"adds to {attribution.target}", "")
    picture.set_figheight(0.6 + 0.26 * max(len(words), 1))
    values = [word.score for word in words]
    bars = axes.barh(range(len(words)), values, color="#0072b2", height=0.7)
    for bar, value in zip(bars, values, strict=True):
        if value < 0:
            bar.set(facecolor="#e69f00", hatch="////", edgecolor="#7a5200", linewidth=0)
    axes.set_yticks(range(len(words)), [attribution.text[word.start : word.end] for word in words])
    axes.invert_yaxis()
    axes.axvline(0, color="#1f2328", linewidth=0.8)
    axes.ticklabel_format(axis="x", style="plain")
    return picture


def draw_heads(maps: AttentionMaps) -> Any:
    """Returns a matplotlib figure of all attention weights: a row of pictures a layer, a column a head.

    In each picture queries go down and keys to the right; the darker, the more a query takes of a key.
    """
    layers, heads = maps.weights.shape[:2]
    picture = blank(0.85 * heads + 0.6, 0.85 * layers + 0.5)
    grid = picture.subplots(layers, heads, squeeze=False)
    for (layer, head), axes in np.ndenumerate(grid):
        axes.imshow(maps.weights[layer, head], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        if head == 0:
            axes.set_ylabel(f"layer {layer}", fontsize=8)
        if layer == 0:
            axes.set_title(f"head {head}", fontsize=8)
    return picture


def draw_head(maps: AttentionMaps, layer: int, head: int) -> Any:
    """Returns a matplotlib figure of what one head attends to: each token (row) to which ones (columns)."""
    size = len(maps.tokens)
    picture = blank(2.0 + 0.24 * size, 1.6 + 0.24 * size)
    axes = picture.subplots()
    drawn = axes.imshow(maps.weights[layer, head], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(size), maps.tokens, rotation=90, fontsize=8)
    axes.set_yticks(range(size), maps.tokens, fontsize=8)
    axes.set(xlabel="takes from", ylabel="token", title=f"layer {layer}, head {head}")
    picture.colorbar(drawn, ax=axes, shrink=0.6, label="weight")
    return picture
