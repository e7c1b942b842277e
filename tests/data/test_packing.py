from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax.data.batches import packed_share
from lepton_jax.data.packing import Packer

pytestmark = pytest.mark.once

LENGTH = 12
sizes_of = st.lists(st.integers(1, LENGTH), max_size=200)


def pack(packer, sizes, start=0):
    """Returns (rows, how many had been added before each came out)."""
    rows, when = [], []
    for document, size in enumerate(sizes, start):
        complete = packer.add(document, size)
        rows += complete
        when += [document] * len(complete)
        assert len(packer.get_state()["rows"]) <= packer.open_rows
    return rows, when


@given(sizes_of, st.integers(1, 5))
def test_each_document_comes_once_in_a_row_that_holds_it_and_in_time(sizes, open_rows):
    packer = Packer(LENGTH, open_rows)
    rows, when = pack(packer, sizes)
    for row, now in zip(rows, when, strict=True):
        assert now - min(row) <= 16 * open_rows
    rest = packer.flush()
    assert packer.get_state()["rows"] == [] and packer.flush() == []
    assert sorted(document for row in rows + rest for document in row) == list(range(len(sizes)))
    for row in rows + rest:
        assert row == sorted(row) and sum(sizes[document] for document in row) <= LENGTH


@given(sizes_of, sizes_of, st.integers(1, 5))
def test_a_position_goes_on_exactly(before, after, open_rows):
    packer, other = Packer(LENGTH, open_rows), Packer(LENGTH, open_rows)
    pack(packer, before)
    pack(other, after)  # a position of its own, which the state replaces
    taken = packer.get_state()
    state = json.loads(json.dumps(taken))
    other.set_state(state)
    straight = pack(packer, after, len(before)), packer.flush()
    assert taken == state == other.get_state(), "a state that was taken does not move on"
    assert (pack(other, after, len(before)), other.flush()) == straight


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([7, 9, 3], [[1, 2], [0]]),  # the one with the least room that fits
        ([12, 7], [[0], [1]]),
        ([6, 7, 8, 12], [[3], [2], [0], [1]]),  # of two open rows the fullest makes room; a full row needs none
        ([8, 8, 8], [[0], [1], [2]]),  # of several, the oldest
    ],
)
def test_which_row_a_document_goes_into(sizes, rows):
    packer = Packer(LENGTH, open_rows=2)
    complete, _ = pack(packer, sizes)
    open_ = [row for _, _, row in packer.get_state()["rows"]]
    assert sorted(complete + open_) == sorted(rows) and (complete + packer.flush())[: len(complete)] == complete
    if sizes == [6, 7, 8, 12]:
        assert complete == [[1], [3]]


def test_a_row_that_nothing_fills_does_not_stay_for_ever():
    packer = Packer(LENGTH, open_rows=2)
    rows, when = pack(packer, [2] + [11] * 100)
    assert when[rows.index([0])] == 32


@pytest.mark.parametrize("size", [0, 13])
def test_a_document_that_no_row_holds_is_refused(size):
    with pytest.raises(ValueError, match="does not fit into a row of 12"):
        Packer(LENGTH).add(0, size)


def test_lengths_as_those_of_articles_fill_99_percent():
    """Most articles are cut into full rows and a rest of any length, some are short."""
    draw = np.random.default_rng(0)
    articles = np.maximum(draw.lognormal(6.2, 0.9, 3000), 8).astype(int)
    for length in (128, 512):
        lengths = np.concatenate([np.minimum(np.arange(n, 0, -length), length) for n in articles])
        assert (lengths <= length).all() and lengths.sum() == articles.sum()
        padded = lengths.sum() / (len(lengths) * length)
        assert packed_share(lengths, length) > 0.99 > 0.95 > padded
