"""Which tokens stay, and where special tokens stand, without any tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers.layout import Layout, Slot, kept

# Two special tokens in the middle, other types: nothing here is right by accident.
LAYOUT = Layout((Slot(0, 4), Slot(-1, 5, (9, 8))), (Slot(-1, 3, (7,)), Slot(1, 6), Slot(-1, 3, (9, 8)), Slot(0, 2)))


def cut(*ids):
    return np.array(ids, np.int32), np.array([(token, token + 1) for token in ids], np.int32).reshape(-1, 2)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=2), st.integers(0, 60))
def test_longest_first_keeps_all_that_fits_and_levels_the_rest(lengths, room):
    left = kept(lengths, room, "longest_first")
    assert sum(left) == min(sum(lengths), room)
    assert all(0 <= after <= before for after, before in zip(left, lengths, strict=True))
    cut_ones = [after for after, before in zip(left, lengths, strict=True) if after < before]
    assert all(after + 1 >= max(left) for after in cut_ones)  # only the longest lose


@given(st.lists(st.integers(0, 40), min_size=2, max_size=2), st.integers(0, 60), st.sampled_from([0, 1]))
def test_one_text_alone_is_cut_or_the_row_is_refused(lengths, room, which):
    strategy = ("only_first", "only_second")[which]
    if sum(lengths) > room and lengths[which] <= sum(lengths) - room:
        with pytest.raises(UserError, match=f"truncation='{strategy}' cuts a text that has {lengths[which]} tokens"):
            kept(lengths, room, strategy)
    else:
        left = kept(lengths, room, strategy)
        assert left[1 - which] == lengths[1 - which] and sum(left) == min(sum(lengths), room)


def test_rows_follow_the_layout():
    single, pair = LAYOUT.rows([cut(1, 2)], None, None, "none")[0], LAYOUT.rows([cut(1, 2)], [cut(3)], None, "none")[0]
    assert single.ids.tolist() == [1, 2, 9, 8] and single.type_ids.tolist() == [4, 4, 5, 5]
    assert single.sequence.tolist() == [0, 0, -1, -1]
    assert single.offsets.tolist() == [[1, 2], [2, 3], [0, 0], [0, 0]]
    assert pair.ids.tolist() == [7, 3, 9, 8, 1, 2] and pair.type_ids.tolist() == [3, 6, 3, 3, 2, 2]
    assert pair.sequence.tolist() == [-1, 1, -1, -1, 0, 0]
    ids = LAYOUT.with_specials(np.array([1, 2], np.int32))
    assert ids.tolist() == [1, 2, 9, 8] and ids.dtype == np.int32


def test_a_row_of_nothing_has_the_right_types():
    empty = Layout((Slot(0),), (Slot(0), Slot(1))).rows([cut()], [cut()], 5, "longest_first")[0]
    assert len(empty) == 0 and empty.offsets.shape == (0, 2)
    assert [value.dtype for value in (empty.ids, empty.type_ids, empty.offsets, empty.sequence)] == [
        np.int32, np.int32, np.int32, np.int8
    ]  # fmt: skip
