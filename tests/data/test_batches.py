from __future__ import annotations

import json

import numpy as np
import pytest
from letters import PAD, Letters

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.batches import evaluation_batches, evaluation_order, training_batches
from lepton_jax.data.bucketing import bucket_lengths
from lepton_jax.data.rows import Rows, encode_examples
from lepton_jax.data.shards import encode_documents
from lepton_jax.data.splits import load_splits
from lepton_jax.data.tokenizers import train

pytestmark = pytest.mark.once

LENGTH = 16


def make_rows(count, low=3, high=LENGTH, seed=0):
    """Returns rows that start with their own number, 1000 and up, so that a row can be recognised anywhere."""
    lengths = np.random.default_rng(seed).integers(low, high + 1, count)
    return [np.concatenate([[1000 + row], np.full(size - 1, 10)]).astype(np.int32) for row, size in enumerate(lengths)]


def documents(batch):
    """Returns the documents of a batch, after checking mask, positions and padding of every row."""
    found = []
    for tokens, mask, positions in zip(batch["token_ids"], batch["attention_mask"], batch["positions"], strict=True):
        used = int((mask > 0).sum())
        assert (mask[:used] > 0).all() and (mask[used:] == 0).all()
        assert (tokens[used:] == PAD).all() and (positions[used:] == 0).all()
        assert list(dict.fromkeys(mask[:used])) == list(range(1, mask.max() + 1))
        for number in range(1, mask.max() + 1):
            where = np.flatnonzero(mask == number)
            assert (np.diff(where) == 1).all()
            assert (positions[where] == np.arange(len(where))).all()
            found.append(tuple(tokens[where]))
    return found


def check_types(batch, size, length=LENGTH):
    for name in ("token_ids", "attention_mask", "positions"):
        assert batch[name].shape == (size, length) and batch[name].dtype == np.int32
    assert batch["weight"].shape == (size,) and batch["weight"].dtype == np.float32


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def test_encode_examples_gives_one_row_a_text():
    rows = encode_examples(Letters(), ["ab", "", "x" * 50], max_length=6)
    assert [row.tolist() for row in rows] == [[2, 97, 98, 3], [2, 3], [2, 120, 120, 120, 120, 3]]
    assert all(row.dtype == np.int32 for row in rows)


def test_padded_training_sees_each_row_once_an_epoch_in_a_new_order():
    rows = make_rows(50)
    labels = np.arange(50, dtype=np.int32)
    batches = take(training_batches(Rows(rows, labels), 10, LENGTH, pack=False, seed=0, pad_id=PAD), 10)
    for batch in batches:
        check_types(batch, 10)
        assert (batch["weight"] == 1).all() and batch["labels"].dtype == np.int32
        assert documents(batch) == [tuple(rows[label]) for label in batch["labels"]]
    order = np.concatenate([batch["labels"] for batch in batches])
    first, second = order[:50], order[50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any() and (first != np.arange(50)).any()


def test_an_epoch_need_not_be_a_whole_number_of_batches():
    labels = np.arange(25, dtype=np.float32)
    batches = take(training_batches(Rows(make_rows(25), labels), 10, LENGTH, pack=False, seed=0, pad_id=PAD), 5)
    order = np.concatenate([batch["labels"] for batch in batches])
    assert order.dtype == np.float32
    assert sorted(order[:25]) == sorted(order[25:]) == list(range(25))


@pytest.mark.parametrize("pack", [False, True])
def test_the_seed_decides_the_order(pack):
    def tokens(seed):
        batches = take(training_batches(make_rows(300), 8, LENGTH, pack=pack, seed=seed, pad_id=PAD), 12)
        return np.stack([batch["token_ids"] for batch in batches])

    first = tokens(0)
    np.testing.assert_array_equal(first, tokens(0))
    assert (first != tokens(1)).any()


def test_packed_training_keeps_every_document_whole():
    rows = make_rows(2000, low=2, high=9)
    batches = take(training_batches(rows, 16, LENGTH, pack=True, seed=0, pad_id=PAD), 160)
    known = {tuple(row) for row in rows}
    found = [document for batch in batches for document in documents(batch)]
    check_types(batches[0], 16)
    assert max(batch["attention_mask"].max() for batch in batches) > 2  # several documents a row
    assert set(found) == known  # after more than three epochs
    half = [document for batch in batches[:32] for document in documents(batch)]  # 512 rows, less than an epoch
    assert 1000 < len(half) == len(set(half)) < 2000


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_every_process_gets_its_rows_of_the_same_batches(pack, streams):
    rows = make_rows(2005)
    labels = None if pack else np.arange(2005, dtype=np.int32)
    rows = Rows(rows, labels)
    common = {"pack": pack, "seed": 3, "pad_id": PAD, "streams": streams}
    whole = take(training_batches(rows, 32, LENGTH, **common), 12)
    assert len({batch["token_ids"].tobytes() for batch in whole}) == 12
    for parts in (
        [slice(0, 16), slice(16, 32)],
        [slice(8 * p, 8 * p + 8) for p in range(4)],
        [slice(0, 16), slice(0, 16), slice(16, 32), slice(16, 32)],  # a tensor axis over two processes
        [slice(0, 4), slice(4, 20), slice(20, 32)],
    ):
        kept = []
        for process in range(len(parts)):
            iterator = training_batches(rows, 32, LENGTH, parts=parts, process_index=process, **common)
            kept += iterator.kept
            touched = {row * streams // 32 for row in range(32)[parts[process]]}
            assert len(iterator.get_state()) == len(touched), "no stream runs in vain"
            for batch, mine in zip(whole, take(iterator, 12), strict=True):
                assert batch.keys() == mine.keys()
                for name, column in batch.items():
                    np.testing.assert_array_equal(mine[name], column[parts[process]])
        assert sorted(kept) == [f"stream_{number}" for number in range(streams)], "each is saved by one process"


@pytest.mark.parametrize("streams", [1, 2])
def test_batches_made_one_have_their_rows_by_stream_in_any_number_of_processes(streams):
    common = {"pack": True, "seed": 3, "pad_id": PAD, "streams": streams}
    single = take(training_batches(make_rows(400), 8, LENGTH, **common), 6)
    whole = training_batches(make_rows(400), 8, LENGTH, **common)
    two = [slice(0, 4), slice(4, 8)]
    processes = [training_batches(make_rows(400), 8, LENGTH, parts=two, process_index=p, **common) for p in range(2)]
    for count, used in ((1, single[:1]), (2, single[1:3]), (3, single[3:])):
        size = 8 // streams
        wanted = [
            batch["token_ids"][size * number : size * (number + 1)] for number in range(streams) for batch in used
        ]
        found = whole.take(count)["token_ids"]
        np.testing.assert_array_equal(found, np.concatenate(wanted))
        halves = [iterator.take(count)["token_ids"] for iterator in processes]
        np.testing.assert_array_equal(np.concatenate(halves), found)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_each_row_occurs_once_an_epoch_over_all_streams(pack, streams):
    rows = make_rows(2048)
    batches = take(training_batches(rows, 32, LENGTH, pack=pack, seed=3, pad_id=PAD, streams=streams), 64)
    found = [document[0] for batch in batches for document in documents(batch)]
    if pack:  # packing holds some back for fuller rows, and an epoch needs fewer batches
        early = [document[0] for batch in batches[:24] for document in documents(batch)]
        assert 768 < len(early) == len(set(early)) < 2048
        assert set(found) == {row[0] for row in rows}
    else:
        assert sorted(found) == [row[0] for row in rows]


@pytest.mark.parametrize("pack", [False, True])
def test_a_stream_is_every_nth_row_of_the_common_order(pack):
    rows = make_rows(4096)  # more than packing reads ahead, so all is of the first epoch
    whole = take(training_batches(rows, 64, LENGTH, pack=False, seed=3, pad_id=PAD), 64)
    order = [document[0] for batch in whole for document in documents(batch)]
    halves = take(training_batches(rows, 8, LENGTH, pack=pack, seed=3, pad_id=PAD, streams=2), 8)
    for number in range(2):
        part = [
            document[0]
            for batch in halves
            for document in documents({name: column[4 * number : 4 * number + 4] for name, column in batch.items()})
        ]
        assert set(part) <= set(order[number::2]) and len(part) >= 32
        if not pack:
            assert part == order[number::2][:32]


FORMS = [{"pack": False}, {"pack": True}, {"pack": True, "isolate": False}, {"pack": False, "buckets": (8, 16)}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [0, 1, 7, 41])  # 41 batches are more than an epoch, a packing and a window
def test_resume_is_exact(form, steps):
    def make():
        return training_batches(make_rows(300), 8, LENGTH, **form, seed=5, pad_id=PAD)

    straight = make()
    for _ in range(steps):
        next(straight)
    state = json.loads(json.dumps(straight.get_state()))  # as a checkpoint keeps it
    expected = take(straight, 20)
    resumed = make()
    next(resumed)  # a position of its own, which the state replaces
    resumed.set_state(state)
    for a, b in zip(expected, take(resumed, 20), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_row_that_was_complete_before_its_batch_is_not_lost():
    """One short document a time waits for long, and then completes a row together with another one."""
    rows = [np.full(size, 10, np.int32) for size in [2] + [LENGTH - 1] * 63]

    def make():
        return training_batches(rows, 1, LENGTH, pack=True, seed=5, pad_id=PAD)

    straight, states = make(), []
    for _ in range(150):
        states.append(json.loads(json.dumps(straight.get_state())))
        next(straight)
    straight.close()
    whole = [batch["token_ids"].tolist() for batch in take(make(), 160)]
    held = [step for step, state in enumerate(states) if _ready(state)]
    assert held
    for step in held[:2]:
        resumed = make()
        resumed.set_state(states[step])
        assert [batch["token_ids"].tolist() for batch in take(resumed, 10)] == whole[step : step + 10]


def _ready(tree):
    """Returns what a position holds under the name "ready", wherever Grain has put it."""
    if not isinstance(tree, dict):
        return None
    return tree.get("ready") or next(filter(None, map(_ready, tree.values())), None)


@pytest.mark.parametrize("pack", [False, True])
def test_streams_resume_in_processes_that_did_not_save_them(pack):
    def make(parts, process):
        return training_batches(make_rows(400), 8, LENGTH, pack=pack, seed=5, pad_id=PAD, streams=4, parts=parts,
                                process_index=process)  # fmt: skip

    two = [slice(0, 4), slice(4, 8)]
    saving = [make(two, process) for process in range(2)]
    for _ in range(7):
        for iterator in saving:
            next(iterator)
    state = {}
    for iterator in saving:
        found = iterator.get_state()
        state |= json.loads(json.dumps({name: found[name] for name in iterator.kept}))
    expected = [
        np.concatenate([a["token_ids"], b["token_ids"]]) for a, b in zip(*(take(i, 9) for i in saving), strict=True)
    ]
    for parts in ([slice(None)], [slice(2 * p, 2 * p + 2) for p in range(4)]):
        resumed = [make(parts, process) for process in range(len(parts))]
        for iterator in resumed:
            iterator.set_state(state)
        batches = [take(iterator, 9) for iterator in resumed]
        for step, tokens in enumerate(expected):
            np.testing.assert_array_equal(np.concatenate([part[step]["token_ids"] for part in batches]), tokens)


def test_a_position_of_another_number_of_streams_is_refused_and_changes_nothing():
    def make(streams):
        return training_batches(make_rows(40), 8, LENGTH, pack=False, seed=5, pad_id=PAD, streams=streams)

    state, one = make(2).get_state(), make(1)
    next(one)
    before = one.get_state()
    for wrong in (state, {}, {"process_0-of-1": {}}):
        with pytest.raises(
            UserError, match=r"data\.streams=1: the saved position of the data is another iterator's, with"
        ):
            one.set_state(wrong)
    assert one.get_state() == before
    one.close()


@pytest.mark.parametrize("pack", [False, True])
def test_a_position_in_other_data_is_refused_and_changes_nothing(pack):
    def make(rows):
        return training_batches(rows, 8, LENGTH, pack=pack, seed=5, pad_id=PAD)

    rows = make_rows(80)
    first = make(rows)
    next(first)
    state = first.get_state()
    other = make([*rows[:-1], rows[-1] + 1])
    before = other.get_state()
    with pytest.raises(UserError, match=r"data\.train: the training data are not those that this run has trained on"):
        other.set_state(state)
    assert other.get_state() == before != state
    same = make(make_rows(80))
    same.set_state(state)
    for iterator in (first, other, same):
        iterator.close()


def test_rows_without_isolation_are_one_segment_with_positions_of_its_own():
    """Everything else is as with it: the same documents in the same rows, still numbered."""
    rows = make_rows(300, low=2, high=9)

    def batches(isolate):
        common = {"pack": True, "isolate": isolate, "pad_id": PAD}
        yield from take(training_batches(rows, 8, LENGTH, seed=0, **common), 12)
        yield from evaluation_batches(rows, 8, LENGTH, **common)

    ends = set()
    for apart, together in zip(batches(True), batches(False), strict=True):
        check_types(together, 8)
        assert together.keys() == apart.keys() | {"documents"} and together["documents"].dtype == np.int32
        for name in ("token_ids", "weight"):
            np.testing.assert_array_equal(together[name], apart[name])
        np.testing.assert_array_equal(together["documents"], apart["attention_mask"])
        real = apart["attention_mask"] > 0
        assert apart["attention_mask"].max() > 2 and apart["positions"].max() < 9
        np.testing.assert_array_equal(together["attention_mask"], real)
        np.testing.assert_array_equal(together["positions"], np.where(real, np.arange(LENGTH), 0))
        ends |= set(together["positions"].max(1).tolist())
    assert max(ends) == LENGTH - 1 and 0 in ends, "full rows, and those that only fill the last batch"


def test_packing_the_news_corpus_leaves_less_than_one_percent_padding():
    texts = load_splits(DataConfig(train="tfds:news_articles"), None).train.texts
    tokenizer = train(texts, "bpe", 8192)
    for length, unpacked in ((128, 0.95), (512, 0.8)):
        rows = encode_documents(tokenizer, texts, length)

        def real(pack, rows=rows, length=length):
            batches = take(training_batches(rows, 32, length, pack=pack, seed=0, pad_id=0), 150)
            return np.mean([(batch["attention_mask"] > 0).mean() for batch in batches])

        assert real(pack=True) > 0.99 > unpacked > real(pack=False)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("count", "processes"), [(64, 1), (70, 1), (70, 3), (3, 2), (1, 4)])
def test_evaluation_gives_each_row_once_and_every_process_as_many_batches(pack, count, processes):
    rows = make_rows(count)
    labels = None if pack else np.arange(count, dtype=np.int32)
    shares = [slice(8 * p, 8 * p + 8) for p in range(processes)]
    parts = [
        list(evaluation_batches(Rows(rows, labels), 8 * processes, LENGTH, pack=pack, pad_id=PAD,
                                parts=shares, process_index=p))
        for p in range(processes)
    ]  # fmt: skip
    assert len({len(part) for part in parts}) == 1
    found = []
    for step in range(len(parts[0])):
        for part in parts:
            batch = part[step]
            check_types(batch, 8)
            real = batch["weight"] == 1
            assert (batch["weight"][~real] == 0).all() and (batch["attention_mask"][~real] == 0).all()
            assert (batch["token_ids"][~real] == PAD).all()
            assert (np.diff(real.astype(int)) <= 0).all()  # filler rows come last
            found += documents(batch)
            if labels is not None:
                assert documents(batch) == [tuple(rows[label]) for label in batch["labels"][real]]
    expected = [tuple(row) for row in rows]
    assert (sorted(found) == sorted(expected)) if pack else (found == expected)


def test_a_fingerprint_is_of_numbers_types_bounds_and_labels():
    ids = [np.array([1, 2, 3], np.int32), np.array([4], np.int32)]
    others = [
        Rows([np.array([1, 2], np.int32), np.array([3, 4], np.int32)]),
        Rows([np.array([1, 2, 4], np.int32), np.array([4], np.int32)]),
        Rows([np.array([1, 2, 3], np.float32), np.array([4], np.int32)]),
        Rows(ids[::-1]),
        Rows([np.array([[1, 2, 3]], np.int32), np.array([4], np.int32)]),
        Rows(ids, np.zeros(2, np.int32)),
        Rows(ids, np.zeros(2, np.float32)),
        Rows(ids, ids),
        Rows(ids, None, ids),
    ]
    assert len({each.fingerprint for each in (Rows(ids), *others)}) == 10
    assert Rows(ids).fingerprint == Rows([np.arange(4, dtype=np.int32)[1:], ids[1].copy()]).fingerprint


def test_evaluation_of_nothing_yields_nothing():
    assert list(evaluation_batches([], 8, LENGTH, pack=True, pad_id=PAD)) == []


def test_errors():
    rows = make_rows(10)
    with pytest.raises(UserError, match=r"fill 10 rows, fewer than one batch of 12; .* train.batch_size of at most 10"):
        training_batches(rows, 12, LENGTH, pack=False, seed=0, pad_id=PAD, streams=2)
    with pytest.raises(ValueError, match="streams=3 must divide batch_size=4"):
        training_batches(rows, 4, LENGTH, pack=False, seed=0, pad_id=PAD, streams=3)
    with pytest.raises(UserError, match=r"fill \d rows of 16 tokens when packed, fewer than one batch of 10"):
        training_batches(rows, 10, LENGTH, pack=True, seed=0, pad_id=PAD)
    with pytest.raises(
        UserError, match=r"data\.streams=4: a source of data\.train has 3 rows; at most as many streams"
    ):
        training_batches(rows, 4, LENGTH, pack=False, seed=0, pad_id=PAD, sizes=(7, 3), weights=(1.0, 1.0), streams=4)
    with pytest.raises(UserError, match=r"a row has \d+ tokens, more than max_length=4"):
        training_batches(rows, 2, 4, pack=False, seed=0, pad_id=PAD)
    with pytest.raises(ValueError, match=r"9 labels, 10 rows"):
        Rows(rows, np.zeros(9, np.int32))
    for wrong in ({"pack": True, "buckets": (8, 16)}, {"pack": False, "buckets": (8,)}):
        with pytest.raises(ValueError, match=r"must increase up to max_length=16"):
            training_batches(rows, 2, LENGTH, seed=0, pad_id=PAD, **wrong)
    for wrong, labels in (({"pack": False}, None), ({"pack": True}, np.zeros(10, np.int32))):
        with pytest.raises(ValueError, match=r"isolate=False: is for packed rows without labels"):
            training_batches(Rows(rows, labels), 2, LENGTH, isolate=False, seed=0, pad_id=PAD, **wrong)
    with pytest.raises(ValueError, match=r"streams=2: must be 1"):
        training_batches(rows, 2, LENGTH, pack=False, buckets=(8, 16), seed=0, pad_id=PAD, streams=2)


def test_the_lengths_of_buckets_are_quarters():
    assert bucket_lengths(128) == (32, 64, 96, 128) and bucket_lengths(48) == (16, 24, 40, 48)
    assert bucket_lengths(16) == (8, 16) and bucket_lengths(10) == (8, 10) and bucket_lengths(8) == (8,)
    assert bucket_lengths(128, unit=64) == (64, 128)


def test_bucketed_batches_have_rows_of_one_length_and_each_row_once_an_epoch():
    rows = make_rows(480, seed=3)
    made = take(training_batches(rows, 8, LENGTH, pack=False, buckets=(4, 8, 12, 16), seed=0, pad_id=PAD), 120)
    lengths = [batch["token_ids"].shape[1] for batch in made]
    assert set(lengths) == {4, 8, 12, 16} and lengths[:60] != sorted(lengths[:60]), "in random order"
    padding = [(batch["attention_mask"] == 0).mean() for batch in made]
    padded = take(training_batches(rows, 8, LENGTH, pack=False, seed=0, pad_id=PAD), 80)
    assert np.mean(padding) < 0.2 < np.mean([(batch["attention_mask"] == 0).mean() for batch in padded])
    for batch in made:
        longest = batch["attention_mask"].sum(1).max()
        assert batch["token_ids"].shape[1] - 4 < longest <= batch["token_ids"].shape[1]
    firsts = [row[0] for batch in made for row in batch["token_ids"]]
    assert sorted(firsts[:480]) == sorted(firsts[480:]) == list(range(1000, 1480)) and firsts[:480] != firsts[480:]


@pytest.mark.parametrize("pack", [False, True])
def test_labels_and_types_follow_their_rows_and_tokens(pack):
    ids = make_rows(200, seed=4)
    numbers = np.arange(200)
    sets = (numbers[:, None] == [[3, 5]]).astype(np.float32)
    buckets = () if pack else (8, 16)
    for labels in (numbers.astype(np.int32), sets, [row - 1 for row in ids]):
        rows = Rows(ids, labels, types=[row % 2 for row in ids])
        training = take(training_batches(rows, 8, LENGTH, pack=pack, buckets=buckets, seed=0, pad_id=PAD), 30)
        for batch in (*training, *evaluation_batches(rows, 8, LENGTH, pack=pack, buckets=buckets, pad_id=PAD)):
            real = batch["attention_mask"] > 0
            np.testing.assert_array_equal(batch["token_type_ids"], np.where(real, batch["token_ids"] % 2, 0))
            if isinstance(labels, list):
                np.testing.assert_array_equal(batch["labels"], np.where(real, batch["token_ids"] - 1, -1))
                continue
            count = batch["attention_mask"].max(1)
            assert batch["labels"].dtype == labels.dtype
            assert batch["labels"].shape == ((8, 16 // 3) if pack else (8,)) + labels.shape[1:]
            for row in range(8):
                found = batch["labels"][row] if pack else batch["labels"][row : row + 1]
                starts = batch["token_ids"][row][(batch["positions"][row] == 0) & real[row]] - 1000
                np.testing.assert_array_equal(found[: len(starts)], labels[starts])
                assert len(starts) == count[row] and not found[len(starts) :].any()


def test_evaluation_in_buckets_has_each_row_once_in_the_order_that_is_said():
    rows = Rows(make_rows(21, seed=5), np.arange(21, dtype=np.int32))
    made = list(evaluation_batches(rows, 8, LENGTH, pack=False, buckets=(8, 16), pad_id=PAD))
    assert [batch["token_ids"].shape for batch in made] == [(8, 8), (8, 16), (8, 16)]
    real = np.concatenate([batch["weight"] for batch in made]) > 0
    labels = np.concatenate([batch["labels"] for batch in made])[real]
    order = evaluation_order(rows, (8, 16))
    assert labels.tolist() == order.tolist() != list(range(21)) and sorted(labels) == list(range(21))
    parts = [slice(0, 4), slice(4, 8)]
    split = [
        list(evaluation_batches(rows, 8, LENGTH, pack=False, buckets=(8, 16), pad_id=PAD, parts=parts, process_index=i))
        for i in (0, 1)
    ]
    for whole, *halves in zip(made, *split, strict=True):
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([half[name] for half in halves]))
