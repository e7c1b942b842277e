"""Windows over rows of numbered tokens: what they hold, who decides about a word, and outputs put together again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax.data.spans import Word
from lepton_jax.data.tokenizers import Encoded
from lepton_jax.infer import windows

pytestmark = pytest.mark.once


def make_row(sizes, blanks=0):
    """Returns a row of two special tokens, `blanks` tokens without a word, words of `sizes` tokens, and a special one.

    A token's id is 100 more than its place, and those of special tokens are -1, -2 and -3.
    """
    count = blanks + sum(sizes)
    ids = np.array([-1, -2, *range(102, 102 + count), -3], np.int32)
    sequence = np.array([-1, -1, *[0] * count, -1], np.int8)
    firsts = 2 + blanks + np.cumsum([0, *sizes])[:-1]
    words = [Word(int(first), number, number + 1) for number, first in enumerate(firsts)]
    return Encoded(ids, np.zeros_like(ids), np.zeros((len(ids), 2), np.int32), sequence), words


@given(
    st.lists(st.integers(1, 4) | st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 15), st.integers(5, 30)
)
def test_each_word_is_decided_once_and_where_it_is_most_central(sizes, blanks, max_length):
    row, words = make_row(sizes, blanks)
    found = windows.cut(row, words, max_length)
    bounds = {2, len(row) - 1, *(word.first for word in words)}
    inner = []
    for window in found:
        assert len(window.ids) <= max_length and window.ids[:2].tolist() == [-1, -2] and window.ids[-1] == -3
        start, stop = int(window.ids[2]) - 100, int(window.ids[-2]) - 99
        assert window.ids[2:-1].tolist() == list(range(100 + start, 100 + stop)), "tokens in a row"
        assert start in bounds and (stop in bounds or len(window.ids) == max_length)
        assert window.ids[window.places].tolist() == (100 + window.firsts).tolist()
        inner.append((start, stop))
    deciders = {first: number for number, window in enumerate(found) for first in window.firsts.tolist()}
    assert sum(len(window.firsts) for window in found) == len(words) and deciders.keys() == {w.first for w in words}
    for first, number in deciders.items():
        depths = [min(first - start, stop - 1 - first) for start, stop in inner]
        assert depths[number] == max(depths) >= 0


def test_windows_overlap_by_half_and_leave_room_around_each_word():
    row, words = make_row([1] * 200)
    found = windows.cut(row, words, 23)  # of the text 20 tokens
    starts = [int(window.ids[2]) for window in found]
    assert starts == list(range(102, 102 + 10 * len(found), 10)) and len(found) == 19
    for window in found[1:-1]:
        assert window.places.min() >= 2 + 5 and window.places.max() <= 2 + 14


def test_what_comes_before_the_first_word_is_in_the_first_window():
    row, words = make_row([1] * 20, blanks=4)
    first, *_, last = windows.cut(row, words, 13)
    assert first.ids[2:-1].tolist() == list(range(102, 112)) and last.ids[-2] == row.ids[-2]


def test_windows_end_between_words():
    row, words = make_row([3] * 20)
    found = windows.cut(row, words, 3 + 10)
    assert {len(window.ids) for window in found[:-1]} == {3 + 9} and found[1].ids[2] == 102 + 6


def test_a_row_that_fits_is_its_own_window_and_one_without_words_has_none():
    row, words = make_row([2, 1, 3])
    (window,) = windows.cut(row, words, len(row))
    assert window.ids is row.ids and window.firsts.tolist() == window.places.tolist() == [2, 4, 5]
    assert len(windows.cut(row, words, len(row) - 1)) > 1
    assert windows.cut(make_row([], 50)[0], [], 10) == windows.cut(make_row([])[0], [], 10) == []


@pytest.mark.parametrize("max_length", [7, 100])
def test_outputs_come_back_to_the_words(max_length):
    row, words = make_row([2, 1, 3, 1, 1])
    found = windows.cut(row, words, max_length)
    assert len(found) == 1 or max_length == 7
    outputs = [np.pad(window.ids, (0, 5))[:, None] * np.array([1.0, 10.0]) for window in found]  # rows are padded
    whole = windows.join(found, outputs, len(row), 2)
    firsts = [word.first for word in words]
    assert whole.dtype == np.float32 and whole[firsts].tolist() == [[100 + n, 10 * (100 + n)] for n in firsts]
    assert not np.delete(whole, firsts, axis=0).any()
