"""Scores on their text: escaped, told apart without colour; and figures."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

from lepton_jax.attribution import AttentionMaps, Attribution, as_html, draw_head, draw_heads, draw_words
from lepton_jax.attribution.gradients import Scored

pytestmark = pytest.mark.once

TEXT = "<b>good</b> & \"bad\" '好'"
SCORES = [(3, 7, 2.0), (15, 18, -1.0), (21, 22, 0.01)]


def shown(page: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", page))


def styles(page: str) -> dict[str, str]:
    """Returns marked word -> its style."""
    return {word: style for style, word in re.findall(r'<span title="[^"]*" style="([^"]*)">(.*?)</span>', page)}


def test_the_text_is_all_there_and_nothing_of_it_is_markup():
    page = as_html(TEXT, SCORES, "<i>")
    assert shown(page).endswith(TEXT) and shown(page).startswith("<i>")
    assert "<b>" not in page and "<i>" not in page
    assert set(re.findall("</?(\\w+)", page)) == {"div", "span"}


def test_for_and_against_differ_without_colour_and_strength_shows():
    found = styles(as_html(TEXT, SCORES))
    assert set(found) == {"good", "bad"}, "what is weak is not marked"
    assert "border-bottom: 3px solid" in found["good"] and "border-top" not in found["good"]
    assert "border-top: 2px dotted" in found["bad"] and "border-bottom" not in found["bad"]
    opacity = {word: float(re.search(r"rgba\(.*, ([\d.]+)\)", style)[1]) for word, style in found.items()}
    assert opacity["good"] == pytest.approx(2 * opacity["bad"])
    assert 'title="+2.000"' in as_html(TEXT, SCORES) and 'title="-1.000"' in as_html(TEXT, SCORES)


def test_several_texts_may_share_a_scale():
    alone, beside = (styles(as_html(TEXT, SCORES, largest=largest))["good"] for largest in (0.0, 8.0))
    assert "0.60" in alone and "0.15" in beside


def test_a_text_without_scores_is_plain():
    for scores in ([], [(3, 7, 0.0)]):
        page = as_html(TEXT, scores)
        assert shown(page).endswith(TEXT) and not styles(page)


def test_an_attribution_shows_itself():
    words = tuple(Scored(*each) for each in SCORES)
    made = Attribution(TEXT, "positive", ("a",), np.array([1.0]), words, 2.5, 1.25)
    page = made._repr_html_()
    assert "positive: 2.50, baseline 1.25, error 0.2" in page and styles(page) == styles(as_html(TEXT, SCORES))
    axes = draw_words(made).axes[0]
    bars = axes.patches
    assert [bar.get_width() for bar in bars] == [2.0, -1.0, 0.01]
    assert [bar.get_hatch() for bar in bars] == [None, "////", None], "signs differ without colour"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "bad", "好"]


def test_heads_are_pictures_of_their_weights():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 4)).astype(np.float32)
    maps = AttentionMaps(("[CLS]", "a", "b", "[SEP]"), weights)
    grid = draw_heads(maps).axes
    assert len(grid) == 6
    np.testing.assert_array_equal(grid[4].images[0].get_array(), weights[1, 1])
    axes = draw_head(maps, 1, 2).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights[1, 2])
    assert [label.get_text() for label in axes.get_xticklabels()] == list(maps.tokens)
    assert axes.images[0].get_clim() == (0, 1), "all heads have one scale"
