from __future__ import annotations

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub, infer
from lepton_jax.compress import quantize_int8
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import Int8
from lepton_jax.data.rows import Rows
from lepton_jax.infer import Predictor
from lepton_jax.infer.predictor import speedup

SMALL = InferConfig(lengths=(4, 8), batch_size=4)  # and 16, the model's length


def make_texts(count: int = 37, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnop   ", k=draw.randint(1, 50))) for _ in range(count)]


@pytest.fixture(scope="module")
def make_predictor(make_bundle):
    """Returns a function that makes a predictor of `SMALL` buckets, once for the whole file."""

    @functools.cache
    def make(precision="float32", **changes) -> Predictor:
        return Predictor(make_bundle(**changes), precision, SMALL)

    return make


def numbers(predictions) -> np.ndarray:
    return np.asarray([list(out["scores"].values()) for out in predictions])


def test_one_dict_a_text_with_probabilities(make_predictor):
    out = make_predictor()(make_texts())
    assert len(out) == 37 and len({one["label"] for one in out}) > 1
    for one in out:
        assert list(one) == ["label", "score", "scores"] and list(one["scores"]) == ["bad", "fair", "good"]
        assert one["label"] == max(one["scores"], key=one["scores"].get) and one["score"] == one["scores"][one["label"]]
        assert isinstance(one["score"], float) and sum(one["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_a_sigmoid_a_class_where_it_was_trained_so(make_predictor):
    texts = make_texts()
    sigmoid, softmax = make_predictor(task="multi_label").scores(texts), make_predictor().scores(texts)
    assert np.all((sigmoid > 0) & (sigmoid < 1)) and np.abs(sigmoid.sum(axis=1) - 1).max() > 0.05
    odds = np.log(sigmoid / (1 - sigmoid))  # the logits, whose softmax the other predictor gives
    np.testing.assert_allclose(jax.nn.softmax(odds), softmax, atol=1e-5)


def test_a_regressor_gives_its_number(make_bundle):
    bundle = make_bundle(labels=())
    out = Predictor(bundle)(["abc def", "b"])
    assert [list(one) for one in out] == [["score"], ["score"]] and out[0]["score"] != out[1]["score"]
    ids = [[bundle.tokenizer.cls_id, *bundle.tokenizer.encode(["abc def"])[0], bundle.tokenizer.sep_id]]
    logits = bundle.model.apply({"params": bundle.params}, jnp.asarray(ids))["logits"]
    assert out[0]["score"] == pytest.approx(float(logits[0, 0]), abs=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 2e-3)])
def test_a_result_depends_on_neither_order_nor_company_nor_bucket(make_bundle, make_predictor, precision, tolerance):
    """To rounding: another shape adds in another order, and in int8 a changed last bit can turn a rounding."""
    texts, predictor = make_texts(), make_predictor(precision)
    together = predictor.scores(texts)
    assert np.ptp(together, axis=0).min() > 3 * tolerance, "texts must differ"
    assert {predictor.pad(Rows([np.zeros(length, np.int32)]))[0].shape[1] for length in (2, 5, 9)} == {4, 8, 16}
    np.testing.assert_allclose(predictor.scores(texts[::-1])[::-1], together, atol=tolerance)
    alone = np.concatenate([predictor.scores([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=tolerance)
    widest = Predictor(make_bundle(), precision, InferConfig(lengths=(16,), batch_size=64))
    assert widest.lengths == (16,) != predictor.lengths
    np.testing.assert_allclose(widest.scores(texts), together, atol=tolerance)


def test_few_programs_serve_many_sizes(make_predictor):
    predictor, rows = make_predictor(), [np.arange(5, 5 + length) for length in range(2, 17)]
    shapes = {predictor.pad(Rows(rows[first : first + count]))[0].shape for first in range(15) for count in range(1, 5)}
    assert shapes == {(count, length) for count in (1, 2, 4) for length in (4, 8, 16)}
    token_ids, mask = predictor.pad(Rows(rows), [0, 3, 1])
    assert mask.sum(axis=1).tolist() == [2, 5, 3, 0] and token_ids.shape == mask.shape == (4, 8)
    assert token_ids[1].tolist() == [5, 6, 7, 8, 9, 0, 0, 0] and not token_ids[3].any()


def test_an_empty_text_is_two_special_tokens(make_bundle, make_predictor):
    bundle, predictor = make_bundle(), make_predictor()
    empty, blank, other = numbers(predictor(["", "   ", "abc"]))
    np.testing.assert_allclose(empty, blank, atol=1e-6)
    assert np.abs(empty - other).max() > 1e-3
    ids = jnp.asarray([[bundle.tokenizer.cls_id, bundle.tokenizer.sep_id]])
    expected = jax.nn.softmax(bundle.model.apply({"params": bundle.params}, ids)["logits"])
    np.testing.assert_allclose(empty, expected[0], atol=1e-5)


def test_a_long_text_is_cut_at_the_models_length(make_predictor):
    predictor = make_predictor()
    long = " ".join(["abc", "def", "gh"] * 40)
    cut, longer, other = predictor.scores([long, f"{long} and more " * 50, " ".join(["gh", "abc"] * 40)])
    np.testing.assert_allclose(cut, longer, atol=1e-6)
    assert np.abs(cut - other).max() > 1e-3


def test_no_texts_give_no_predictions(make_predictor):
    predictor = make_predictor()
    assert predictor([]) == [] and predictor.scores([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "texts must be a sequence of strings, not one string"),
        (["a", 3], r"texts\[1\] is int, not a string"),
        ([None], r"texts\[0\] is NoneType, not a string"),
        (["a", b"b"], r"texts\[1\] is bytes, not a string"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(make_predictor, texts, message):
    with pytest.raises(UserError, match=message):
        make_predictor()(texts)


def test_bfloat16_is_close_and_really_bfloat16(make_bundle, make_predictor):
    texts, exact, half = make_texts(), make_predictor(), make_predictor("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    lowered = half.forward.lower(half.params, *half.pad(Rows([np.arange(5, 9)]))).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and all(line.count("xbf16>") >= 2 for line in products)
    assert {leaf.dtype for leaf in jax.tree.leaves(exact.params)} == {jnp.dtype("float32")}
    difference = np.abs(exact.scores(texts) - half.scores(texts)).max()
    assert 1e-4 < difference < 0.05 and half.outputs(texts)[0].dtype == np.float32


def test_int8_on_load_equals_int8_written(make_bundle, make_predictor, tmp_path):
    bundle, texts = make_bundle(), make_texts(4)
    hub.write(tmp_path / "float", bundle)
    card = dataclasses.replace(bundle.card, weights="int8")
    hub.write(tmp_path / "int8", dataclasses.replace(bundle, params=quantize_int8(bundle.params), card=card))
    loaded, written = (infer.load(tmp_path / name, "int8", SMALL) for name in ("float", "int8"))
    assert all(isinstance(one.params["embeddings"]["token"], Int8) for one in (loaded, written))
    np.testing.assert_array_equal(loaded.scores(texts), written.scores(texts))
    assert np.abs(make_predictor().scores(texts) - written.scores(texts)).max() > 1e-5
    for precision in ("float32", "bfloat16"):
        with pytest.raises(UserError, match=f"holds int8 weights, which load as int8, not as {precision}"):
            infer.load(tmp_path / "int8", precision)


def test_a_precision_that_does_not_exist_is_refused(make_bundle):
    with pytest.raises(UserError, match="precision='int4': must be float32, bfloat16 or int8"):
        Predictor(make_bundle(), "int4")


def test_a_masked_language_model_predicts_no_labels(quickstart):
    with pytest.raises(
        UserError, match="the model has the head 'masked_lm' and predicts no labels; fine-tune it first"
    ):
        infer.load(quickstart / "pretrain")


@pytest.mark.parametrize("lengths", [(4, 8), (64, 128), (8, 16, 32)])
def test_buckets_end_at_the_models_length(make_bundle, lengths):
    predictor = Predictor(make_bundle(), config=InferConfig(lengths=lengths))
    assert predictor.lengths == (*(length for length in lengths if length < 16), 16)


def test_speedup_is_a_ratio_of_times(make_bundle):
    """A predictor of 16 times the rows is slower than the other one, whichever comes first."""
    bundle = make_bundle()
    texts = make_texts(64, seed=3)
    one, other = Predictor(bundle, config=InferConfig(batch_size=64)), Predictor(bundle, "int8")
    value = speedup(one, other, texts, repeats=3)
    assert isinstance(value, float) and value > 0

    def slow(params, *batch, run=other.forward):
        for _ in range(30):
            out = run(params, *batch)
            out.block_until_ready()
        return out

    other.forward = slow
    assert 0 < speedup(one, other, texts, repeats=3) < value
