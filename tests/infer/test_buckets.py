from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax.infer.buckets import Buckets, choose, make

pytestmark = pytest.mark.once


def padded(seen, lengths) -> int:
    return sum(min(length for length in lengths if length >= min(tokens, lengths[-1])) for tokens in seen)


@pytest.mark.parametrize("seed", range(4))
def test_chosen_lengths_compute_the_least(seed):
    """Against every choice there is of eight multiples of eight."""
    draw = np.random.default_rng(seed)
    seen = draw.choice(
        [draw.integers(3, 70, 200), draw.integers(40, 90, 200), draw.geometric(0.05, 200) + 2][seed % 3], 90
    )
    chosen = choose(seen, 84)
    assert chosen[-1] == 84 and len(chosen) <= 8 and all(length % 8 == 0 for length in chosen[:-1])
    least = min(
        padded(seen, (*some, 84)) for count in range(8) for some in itertools.combinations(range(8, 84, 8), count)
    )
    assert padded(seen, chosen) == least < padded(seen, (16, 32, 64, 84))


def test_lengths_are_chosen_by_what_was_seen():
    assert make((), (8,), 128).lengths == (16, 32, 64, 128)
    assert make((), (8,), 100).lengths == (16, 32, 64, 100)
    assert make((), (8,), 8).lengths == (8,)
    short = make((), (8,), 128, seen=np.full(100, 21)).lengths
    assert short == (24, 128) or (24 in short and short[-1] == 128)
    assert make((12, 64), (8,), 100, seen=np.full(100, 21)).lengths == (12, 64, 100)
    assert choose(np.array([5000] * 3 + [90] * 10), 8192)[-1] == 8192


def test_counts_divide_among_devices():
    assert make((), (1, 8, 64), 32).counts == (1, 8, 64)
    assert make((), (1, 8, 64), 32, devices=4).counts == (4, 8, 64)
    assert make((), (1, 2, 3, 5), 32, devices=3).counts == (3, 6)


@given(
    st.lists(st.integers(0, 32), max_size=80),
    st.sampled_from([(1,), (1, 4), (8,), (2, 16)]),
    st.sampled_from([(32,), (8, 32), (4, 16, 24, 32)]),
    st.sampled_from([0, 30, 64, 1000]),
)
def test_batches_hold_each_row_once_and_fit(lengths, counts, buckets, tokens):
    shapes = Buckets(buckets, counts, tokens)
    batches = shapes.batches(np.array(lengths, int))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        most = max(lengths[row] for row in batch)
        length = shapes.length(most)
        count = shapes.count(len(batch), length)
        assert most <= length and len(batch) <= count <= counts[-1] and count in shapes.rows(length)
        assert count == 1 or not tokens or count * length <= tokens


def test_the_longer_the_rows_the_fewer_they_are():
    shapes = make((16, 64, 128), (1, 8, 64), 1024, tokens=512)
    rows = {length: shapes.rows(length) for length in shapes.lengths}
    assert rows == {16: (1, 8, 32), 64: (1, 8), 128: (1, 4), 1024: (1,)}
    assert [len(batch) for batch in shapes.batches(np.array([1000, 100, 100, 100, 9]))] == [1, 3, 1]
    assert [len(batch) for batch in shapes.batches(np.array([9] * 40))] == [32, 8]
    assert shapes.count(3, 128) == 4 and shapes.count(6, 128) == 8, "who asks for more rows gets them"
    four = make((16,), (1, 8, 64), 128, devices=4, tokens=512)
    assert [four.rows(length) for length in (16, 128)] == [(4, 8, 64), (4, 8, 16)], "tokens are those of a device"
    assert make((16,), (1, 8, 64), 128).rows(128) == (1, 8, 64)


def test_a_batch_that_is_nearly_full_ends_where_its_bucket_does():
    shapes = Buckets((8, 32), (8,))
    assert [len(batch) for batch in shapes.batches(np.array([4] * 8 + [20] * 6))] == [6, 8]
    assert [len(batch) for batch in shapes.batches(np.array([4] * 8 + [20] * 3))] == [8, 3]
