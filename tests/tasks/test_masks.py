"""Masks of words and spans: against a slow reference, by their properties, and through the task."""

import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import plan, tasks
from lepton_jax.config import TaskConfig
from lepton_jax.core.errors import UserError
from lepton_jax.tasks import masks
from lepton_jax.tasks.masked_lm import MaskedLM

LENGTH, ROWS = 16, 3
# Tokens below 3 are special; of the others the even ones begin a word.
WORD_STARTS = np.array([token >= 3 and token % 2 == 0 for token in range(13)])


@functools.cache
def choose(rate, budget):
    return jax.jit(functools.partial(masks.choose, rate=rate, budget=budget))


def slow_units(begins, ordinary, segments):
    """Returns the units of one row, as lists of positions."""
    found = []
    for at in range(len(ordinary)):
        if not ordinary[at]:
            continue
        if at == 0 or begins[at] or not ordinary[at - 1] or segments[at] != segments[at - 1]:
            found.append([])
        found[-1].append(at)
    return found


@st.composite
def drawn_rows(draw):
    ids = draw(st.lists(st.lists(st.integers(0, 12), min_size=LENGTH, max_size=LENGTH), min_size=ROWS, max_size=ROWS))
    cuts = draw(st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)), min_size=ROWS, max_size=ROWS))
    steps = np.arange(LENGTH)
    segments = [np.where(steps < min(cut), 1, np.where(steps < max(cut), 2, 0)) for cut in cuts]
    return np.array(ids, np.int32), np.stack(segments).astype(np.int32)


@settings(deadline=None, max_examples=80)
@given(drawn_rows(), st.integers(0, 2**31 - 1), st.sampled_from([0.15, 0.5]))
def test_units_are_masked_whole_or_not_at_all(rows, seed, rate):
    ids, segments = rows
    budget = math.ceil(rate * LENGTH)
    ordinary = (ids >= 3) & (segments > 0)
    begins = WORD_STARTS[ids]
    starts = np.asarray(masks.units(*map(jnp.asarray, (begins, ordinary, segments))))
    predict, weight = map(np.asarray, choose(rate, budget)(jax.random.key(seed), ordinary, starts))
    assert predict.shape == weight.shape == (ROWS, budget) and set(weight.flat) <= {0.0, 1.0}
    for row in range(ROWS):
        units = slow_units(begins[row], ordinary[row], segments[row])
        assert np.flatnonzero(starts[row]).tolist() == [unit[0] for unit in units]
        assert len(set(predict[row])) == budget
        chosen = set(predict[row][weight[row] > 0].tolist())
        whole = [unit for unit in units if chosen >= set(unit)]
        assert chosen == set().union(*map(set, whole)), "a unit was split"
        count = int(ordinary[row].sum())
        wanted = min(max(round(float(np.float32(rate) * np.float32(count))), min(count, 1)), budget)
        sizes = [len(unit) for unit in units]
        limit = min(max(wanted, min(sizes, default=0)), budget)
        assert len(chosen) <= limit
        assert bool(chosen) == any(size <= limit for size in sizes), "what fits is taken"
        left = [len(unit) for unit in units if not chosen & set(unit)]
        if len(whole) < 3:  # each of three rounds takes a unit, unless none fits
            assert all(size > limit - len(chosen) for size in left), "room for a unit was left"


def test_a_word_beyond_the_budget_is_left_alone():
    ordinary, starts = np.ones((2, LENGTH), bool), np.zeros((2, LENGTH), bool)
    starts[0, [0, 5, 9]] = True  # 5, 4 and 7 tokens
    starts[1, [0, 3, 9]] = True  # 3, 6 and 7 tokens
    _, weight = choose(0.15, 3)(jax.random.key(0), ordinary, starts)
    assert weight.sum(axis=1).tolist() == [0.0, 3.0]


def test_single_tokens_are_units_of_one():
    """The plain path and the path of units agree where every token begins one."""
    ordinary = np.random.default_rng(0).random((ROWS, LENGTH)) < 0.8
    key, draw = jax.random.key(0), choose(0.5, 8)
    plain, units = draw(key, ordinary, None), draw(key, ordinary, ordinary)
    np.testing.assert_array_equal(plain[1], units[1])
    chosen = [np.where(np.asarray(weight) > 0, predict, -1) for predict, weight in (plain, units)]
    np.testing.assert_array_equal(*chosen)
    assert (chosen[0] != np.where(np.asarray(plain[1]) > 0, draw(jax.random.key(1), ordinary, None)[0], -1)).any()


def test_each_unit_is_as_likely_as_any_other():
    """Units of 1, 2, 3, 1, 2, 3, ... of which a third are wanted. A long one fits less often at the end."""
    sizes = [1, 2, 3] * 8
    starts = np.zeros((4000, 48), bool)
    starts[:, np.cumsum([0, *sizes[:-1]])] = True
    predict, weight = map(np.asarray, choose(1 / 3, 16)(jax.random.key(0), np.ones_like(starts), starts))
    hit = np.zeros(starts.shape)
    np.put_along_axis(hit, predict, weight, axis=1)
    rates = hit.mean(axis=0)[np.flatnonzero(starts[0])]
    assert abs(hit.sum(axis=1).mean() - 16) < 0.2, "the budget is all but used"
    for size in (1, 2, 3):
        assert np.ptp(rates[size - 1 :: 3]) < 0.05, "where a unit lies does not matter"
    assert rates.min() > 0.28 and rates.max() < 0.42


def test_spans_have_geometric_lengths():
    begins = np.asarray(masks.spans(jax.random.key(0), (200, 500), 3.8))
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in begins])
    assert abs(lengths.mean() - 3.8) < 0.1
    for n in (1, 2, 5):
        assert abs((lengths == n).mean() - (1 / 3.8) * (1 - 1 / 3.8) ** (n - 1)) < 0.01
    assert np.asarray(masks.spans(jax.random.key(0), (3, 9), 1.0)).all(), "spans of one are single tokens"


# --- through the task


def task(unit, **changes):
    words = tuple(WORD_STARTS.tolist())
    return MaskedLM(TaskConfig(mask_unit=unit, mask_rate=0.5, **changes), 13, 2, (0, 1, 2), words)


def runs_of(task, seed, ids, segments):
    """Returns the chosen positions of each row."""
    _, predict, targets, weight = map(np.asarray, jax.jit(task.mask)(jax.random.key(seed), ids, segments))
    np.testing.assert_array_equal(targets, np.take_along_axis(np.asarray(ids), predict, axis=1))
    return [sorted(row[use > 0].tolist()) for row, use in zip(predict, weight, strict=True)]


def test_the_task_masks_what_its_config_names():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 13, (8, LENGTH)).astype(np.int32)
    segments = np.where(np.arange(LENGTH) < 7, 1, 2).astype(np.int32) * np.ones((8, 1), np.int32)
    found = {unit: runs_of(task(unit), 0, ids, segments) for unit in ("token", "word", "span")}
    assert found["token"] != found["word"] != found["span"] != found["token"]
    for row, chosen in enumerate(found["word"]):
        units = slow_units(WORD_STARTS[ids[row]], ids[row] >= 3, segments[row])
        assert len(units) < LENGTH and chosen
        assert all(len(set(unit) & set(chosen)) in (0, len(unit)) for unit in units)
    assert runs_of(task("span", span_length=1.0), 0, ids, segments) == found["token"]
    for unit in found:
        assert runs_of(task(unit), 0, ids, segments) == found[unit] != runs_of(task(unit), 1, ids, segments)
    assert np.mean([len(row) for row in found["word"]]) > 0.9 * LENGTH / 2


def test_spans_are_longer_than_what_single_tokens_give_by_chance():
    ids, segments = np.full((200, 64), 5, np.int32), np.ones((200, 64), np.int32)

    def mean_run(unit, **changes):
        chosen = MaskedLM(TaskConfig(mask_unit=unit, **changes), 13, 2, (0, 1, 2))
        rows = runs_of(chosen, 0, ids, segments)
        gaps = sum(int((np.diff(row) > 1).sum()) + 1 for row in rows)
        return sum(map(len, rows)) / gaps

    assert mean_run("token") < 1.4 < 2.5 < mean_run("span") < mean_run("span", span_length=6.0)


def test_rows_are_cut_into_other_spans_by_other_keys():
    """Neighbours in a span share its fate; of spans that were always the same they would share it under every key."""
    ids, keys = np.full((1, LENGTH), 5, np.int32), jax.random.split(jax.random.key(0), 100)
    draw = jax.jit(jax.vmap(task("span").mask, (0, None, None)))
    _, predict, _, weight = draw(keys, ids, np.ones_like(ids))
    hit = np.zeros((100, LENGTH))
    np.put_along_axis(hit, np.asarray(predict)[:, 0], np.asarray(weight)[:, 0], axis=1)
    apart = (hit[:, 1:] != hit[:, :-1]).mean(axis=0)
    assert apart.min() > 0.02 and apart.max() < 0.4


def test_words_come_from_the_tokenizer():
    tokenizer = types.SimpleNamespace(pad_id=0, unk_id=1, cls_id=None, sep_id=None, mask_id=2, vocab_size=13)
    assert tasks.make_task(TaskConfig(), tokenizer).word_starts == ()
    tokenizer.word_starts = WORD_STARTS
    assert tasks.make_task(TaskConfig(mask_unit="word"), tokenizer).word_starts == tuple(WORD_STARTS)
    assumed: Any = plan._AssumedTokenizer(13)  # of a dry run, which has none yet: each token is taken for a word
    assert tasks.make_task(TaskConfig(mask_unit="word"), assumed).word_starts == (True,) * 13
    tokenizer.mask_id = None
    with pytest.raises(UserError, match="no mask token"):
        tasks.make_task(TaskConfig(mask_unit="word"), tokenizer)
