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
    """Against every choice there is of five multiples of eight."""
    draw = np.random.default_rng(seed)
    seen = draw.choice(
        [draw.integers(3, 70, 200), draw.integers(40, 90, 200), draw.geometric(0.05, 200) + 2][seed % 3], 90
    )
    chosen = choose(seen, 84)
    assert chosen[-1] == 84 and len(chosen) <= 5 and all(length % 8 == 0 for length in chosen[:-1])
    least = min(
        padded(seen, (*some, 84)) for count in range(5) for some in itertools.combinations(range(8, 84, 8), count)
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
)
def test_batches_hold_each_row_once_and_fit(lengths, counts, buckets):
    shapes = Buckets(buckets, counts)
    batches = shapes.batches(np.array(lengths, int))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat)
    for batch in batches:
        assert len(batch) <= shapes.count(len(batch)) in counts
        assert max(lengths[row] for row in batch) <= shapes.length(max(lengths[row] for row in batch))


def test_a_batch_that_is_nearly_full_ends_where_its_bucket_does():
    shapes = Buckets((8, 32), (8,))
    assert [len(batch) for batch in shapes.batches(np.array([4] * 6 + [20] * 8))] == [6, 8]
    assert [len(batch) for batch in shapes.batches(np.array([4] * 3 + [20] * 8))] == [8, 3]
