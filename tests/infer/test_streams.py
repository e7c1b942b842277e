"""Texts without end, many threads, many devices, and what is said of texts that were not read as they are."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice

import jax
import numpy as np
import pytest

from lepton_jax import infer
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import Int8
from lepton_jax.infer import predictor as module
from lepton_jax.infer.predictor import Work

SMALL = InferConfig((4, 8), (1, 4), 1)
TEXTS = ["abc de", "", "gh", "abc def gh ij kl mnop abc", "b", "de", "a b c d e f g h i j k l m n o p a b c d"]


@pytest.fixture(scope="module")
def predictor(make_bundle):
    return infer.from_bundle(make_bundle(), config=SMALL)


def scores(predictions) -> np.ndarray:
    return np.array([list(each["scores"].values()) for each in predictions])


def test_a_stream_is_read_as_far_as_it_is_needed(predictor):
    seen = []

    def endless():
        for number in count():
            seen.append(number)
            yield TEXTS[number % len(TEXTS)]

    found = list(islice(predictor.stream(endless()), 300))
    chunk = 64 * 4
    assert chunk < 300 and len(seen) <= 3 * chunk, "one chunk is read ahead"
    expected = scores(predictor(TEXTS))
    assert np.ptp(expected, axis=0).min() > 0.01, "texts must differ"
    np.testing.assert_allclose(scores(found), np.resize(expected, (300, 3)), atol=1e-5)


def test_long_texts_make_short_chunks(predictor, monkeypatch):
    monkeypatch.setattr(module, "_CHARACTERS", 25)
    chunks = [texts for texts, _ in module._chunks(["a" * 10] * 7 + [3], None, 100)]
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    np.testing.assert_allclose(
        scores(predictor(TEXTS)), scores(map(lambda text: predictor([text])[0], TEXTS)), atol=1e-5
    )


def test_pairs_keep_to_their_texts_over_chunks(make_bundle, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1)
    bundle = make_bundle(type_vocab_size=2)
    predictor, others = infer.from_bundle(bundle, config=SMALL), TEXTS[::-1]
    found = scores(predictor.stream(iter(TEXTS), iter(others)))
    np.testing.assert_allclose(found, predictor.scores(TEXTS, others), atol=1e-5)
    assert np.abs(found - predictor.scores(others, TEXTS)).max() > 1e-3
    for pairs, what in ((others[:-1], "fewer"), ([*others, "a"], "more")):
        with pytest.raises(UserError, match=f"there are {what} pairs than texts; one each"):
            list(predictor.stream(iter(TEXTS), iter(pairs)))


def test_a_bad_pair_spoils_no_other(make_bundle):
    predictor = infer.from_bundle(make_bundle(), config=SMALL)
    good = predictor(["a", "b"], ["c", "d"])
    assert predictor(["a", "x", "b"], ["c", None, "d"]) == [
        good[0], {"error": "the second text is NoneType, not a string"}, good[1]
    ]  # fmt: skip


def test_threads_share_a_predictor(predictor):
    calls = [TEXTS[start:] + TEXTS[:start] for start in range(len(TEXTS))] * 4
    expected = [predictor(texts) for texts in calls]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(predictor, calls)) == expected


class Queue:
    """Workers that compute the first batches at once, and then never again."""

    def __init__(self, most):
        self.most, self.left = most, []

    def submit(self, compute, *args):
        future = Future()
        if self.most:
            self.most -= 1
            future.set_result(compute(*args))
        else:
            self.left.append(future)
        return future


def test_what_nobody_waits_for_is_given_up(make_bundle, monkeypatch):
    predictor = infer.from_bundle(make_bundle(), config=SMALL)
    texts = TEXTS * 40  # two chunks, of 256 texts and of 24
    first, second = (
        len(predictor.buckets.batches(predictor.encode(part).rows.lengths)) for part in (texts[:256], texts[256:])
    )
    monkeypatch.setattr(predictor, "_workers", queue := Queue(first))
    stream = predictor.stream(texts)
    assert next(stream)["score"] == pytest.approx(predictor([texts[0]])[0]["score"], abs=1e-5)
    assert len(queue.left) == second > 1 and not any(each.cancelled() for each in queue.left)
    stream.close()
    assert all(each.cancelled() for each in queue.left)


def test_a_batch_that_fails_ends_the_others():
    batches = [([0], Future()), ([1], Future()), ([2], Future())]
    batches[0][1].set_exception(MemoryError("no more"))
    with pytest.raises(MemoryError, match="no more"):
        Work(3, batches).get()
    assert batches[1][1].cancelled() and batches[2][1].cancelled()


def test_several_devices_share_the_rows_and_give_the_same(make_bundle):
    assert len(jax.local_devices()) == 8
    bundle = make_bundle()
    one, four = (infer.from_bundle(bundle, "int8", dataclasses.replace(SMALL, devices=devices)) for devices in (1, 4))
    assert one.buckets.counts == (1, 4) and four.buckets.counts == (4,)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(four.params)} == {4}
    out, _ = four.forward(four.params, *four.pad(four.encode(TEXTS[:4]).rows))
    assert len(out.sharding.device_set) == 4 and {each.data.shape for each in out.addressable_shards} == {(1, 3)}
    np.testing.assert_allclose(scores(four(TEXTS)), scores(one(TEXTS)), atol=2e-3)
    with pytest.raises(UserError, match=r"infer.devices=9: there are 8; 0 takes all"):
        infer.from_bundle(bundle, config=dataclasses.replace(SMALL, devices=9))


def test_every_bucket_is_compiled_when_a_model_is_loaded(make_bundle, monkeypatch):
    predictor = infer.from_bundle(make_bundle(), config=dataclasses.replace(SMALL, batch_tokens=32))
    expected = predictor([*TEXTS, *TEXTS, "a"])
    predictor.compile()
    made = predictor._compiled
    assert set(made) == {(1, 4), (4, 4), (1, 8), (4, 8), (1, 16), (2, 16)}
    used = set()

    def counted(shape, call):
        return lambda *batch: used.add(shape) or call(*batch)

    monkeypatch.setattr(predictor, "_compiled", {shape: counted(shape, call) for shape, call in made.items()})
    monkeypatch.setattr(predictor, "forward", None)  # nothing is left to compile
    assert predictor([*TEXTS, *TEXTS, "a"]) == expected
    predictor(["a"])
    assert used >= {(1, 4), (2, 16)}


def test_warnings_tell_what_was_not_read(make_bundle, predictor):
    sizes = [len(ids) for ids in predictor.tokenizer.encode(TEXTS)]
    size = sizes[-1]
    assert sum(each > 14 for each in sizes) == 2 and size > 14
    found = [each.get("warning") for each in predictor(TEXTS)]
    cut = [f"read were the first 14 of the text's {each} tokens" if each > 14 else None for each in sizes]
    assert found == [cut[0], "the text is empty", *cut[2:]]
    with_pairs = [each.get("warning") for each in predictor(["a", "", TEXTS[-1]], ["b", "", "c"])]
    assert with_pairs == [None, "the text is empty", f"read were the first 13 of the text's {size + 1} tokens"]
    twice = [TEXTS[-1]]
    assert predictor(twice, twice)[0]["warning"] == f"read were the first 13 of the text's {2 * size} tokens"
    tagger = infer.from_bundle(make_bundle("token_classification", ("O", "B-A", "I-A")), config=SMALL)
    assert [each.get("warning") for each in tagger(TEXTS)] == [None, "the text is empty", *[None] * 5]


def test_a_text_of_a_million_characters_is_read(predictor):
    long = "abc de " * 150_000
    (found,) = predictor([long])
    np.testing.assert_allclose(scores([found]), scores(predictor([long[:100]])), atol=1e-5)
    assert found["warning"].startswith("read were the first 14 of the text's ")


def test_batches_on_a_cpu_are_small_and_kernels_lie_as_products_read_them(make_bundle):
    default, own = (infer.from_bundle(make_bundle(), "int8", InferConfig(devices=1, batch_tokens=n)) for n in (0, 32))
    assert default.buckets.tokens == 512 and own.buckets.tokens == 32
    kernels = [leaf for leaf in jax.tree.leaves(default.params, is_leaf=is_int8) if is_int8(leaf)]
    turned = [leaf for leaf in kernels if leaf.scale.shape[-2] == 1]
    assert turned and len(turned) < len(kernels) and all(leaf.transposed for leaf in turned)


def is_int8(node) -> bool:
    return isinstance(node, Int8)
