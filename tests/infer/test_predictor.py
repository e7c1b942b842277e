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
from lepton_jax.data.spans import decode, words_of
from lepton_jax.infer import Predictor, readings
from lepton_jax.infer.predictor import speedup

LABELS = {"classification": ("bad", "fair", "good"), "masked_lm": (), "none": ()}
SMALL = InferConfig(lengths=(4, 8), batch_sizes=(1, 2, 4), devices=1)  # and 16, the model's length


def make_texts(count: int = 37, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnop   ", k=draw.randint(1, 50))) for _ in range(count)]


@pytest.fixture(scope="module")
def make_predictor(make_bundle):
    """Returns a function that makes a predictor of `SMALL` buckets, once for the whole file."""

    @functools.cache
    def make(precision="float32", **changes) -> Predictor:
        return infer.from_bundle(make_bundle(**changes), precision, SMALL)

    return make


def numbers(predictions) -> np.ndarray:
    return np.asarray([list(out["scores"].values()) for out in predictions])


def test_one_dict_a_text_with_probabilities(make_predictor):
    out = make_predictor()(make_texts())
    assert len(out) == 37 and len({one["label"] for one in out}) > 1
    for one in out:
        assert list(one)[:3] == ["label", "score", "scores"] and list(one["scores"]) == ["bad", "fair", "good"]
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
    out = infer.from_bundle(bundle)(["abc def", "b"])
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
    widest = infer.from_bundle(make_bundle(), precision, InferConfig((16,), (64,), 1))
    assert widest.buckets.lengths == (16,) != predictor.buckets.lengths
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
    ("bad", "error"),
    [
        (3, "the text is int, not a string"),
        (None, "the text is NoneType, not a string"),
        (b"b", "the text is bytes, not a string"),
        (float("nan"), "the text is float, not a string"),
        ("ab\ud800", "the text has half a character (a lone surrogate) at 2"),
        (ValueError("line 7: not UTF-8"), "line 7: not UTF-8"),
    ],
)
@pytest.mark.parametrize("head", ["classification", "token_classification", "masked_lm", "none"])
def test_one_bad_text_spoils_no_other(make_predictor, head, bad, error):
    predictor = make_predictor(head=head, labels=BIO if head == "token_classification" else LABELS[head])
    texts = ["abc [MASK]", "", "de f"]
    alone = predictor(texts)
    assert predictor([texts[0], bad, *texts[1:], bad]) == [alone[0], {"error": error}, *alone[1:], {"error": error}]
    with pytest.raises(UserError, match="element 1: "):
        predictor.encode([texts[0], bad])


@pytest.mark.parametrize("texts", ["a text", b"a text"])
def test_one_string_is_no_list_of_texts(make_predictor, texts):
    with pytest.raises(UserError, match="texts must be a sequence of strings, not one string"):
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


def test_attention_of_an_int8_model_can_be_int8_too(make_bundle, make_predictor, tmp_path):
    wanted = dataclasses.replace(SMALL, attention="int8")
    texts, floats, predictor = make_texts(), make_predictor("int8"), infer.from_bundle(make_bundle(), "int8", wanted)
    lowered = predictor.forward.lower(predictor.params, *predictor.pad(Rows([np.arange(5, 9)]))).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and not [line for line in products if "xf32>, tensor" in line]
    difference = np.abs(predictor.scores(texts) - floats.scores(texts)).max()
    assert 1e-5 < difference < 0.05
    for precision in ("float32", "bfloat16"):
        with pytest.raises(UserError, match=rf"infer.attention='int8': is for an int8 model, not for {precision}"):
            infer.from_bundle(make_bundle(), precision, wanted)
    floats.export(tmp_path / "export", ("cpu",))
    with pytest.raises(UserError, match=r"was exported with infer.attention='auto', and is nothing else"):
        infer.load(tmp_path / "export", config=wanted)


def test_a_precision_that_does_not_exist_is_refused(make_bundle):
    with pytest.raises(UserError, match="precision='int4': must be float32, bfloat16 or int8"):
        infer.from_bundle(make_bundle(), "int4")


@pytest.mark.parametrize("lengths", [(4, 8), (8, 16)])
def test_buckets_end_at_the_models_length(make_bundle, lengths):
    with pytest.raises(UserError, match=r"infer.lengths=\(8, 17\): the model reads at most 16 tokens"):
        infer.from_bundle(make_bundle(), config=InferConfig((8, 17)))
    predictor = infer.from_bundle(make_bundle(), config=InferConfig(lengths, devices=1))
    assert predictor.buckets.lengths == (*(length for length in lengths if length < 16), 16)


def test_speedup_is_a_ratio_of_times(make_bundle):
    """A predictor of 16 times the rows is slower than the other one, whichever comes first."""
    bundle = make_bundle()
    texts = make_texts(64, seed=3)
    one, other = (
        infer.from_bundle(bundle, config=InferConfig(batch_sizes=(64,), devices=1)),
        infer.from_bundle(bundle, "int8"),
    )
    value = speedup(one, other, texts, repeats=3)
    assert isinstance(value, float) and value > 0

    def slow(params, *batch, run=other.forward):
        for _ in range(30):
            out = run(params, *batch)
            jax.block_until_ready(out)
        return out

    other.forward = slow
    assert 0 < speedup(one, other, texts, repeats=3) < value


BIO = ("O", "B-A", "I-A", "B-B", "I-B")
LONG = " ".join(make_texts(8, seed=5))


def by_id(params, token_ids, mask, table):
    """Stands in for a model: the logits of a token are the entry of its id, whatever is around it."""
    return jnp.asarray(table)[token_ids], jnp.zeros((len(token_ids), 1))


def test_entities_are_where_the_model_sees_them(make_bundle, make_predictor):
    bundle = make_bundle("token_classification", BIO)
    predictor, texts = make_predictor(head="token_classification", labels=BIO), ["", "ab cd", *make_texts(12), "  "]
    out = predictor(texts)
    assert len(out) == 15 and out[0] == out[-1] == {"entities": [], "warning": "the text is empty"}
    assert {each["label"] for one in out for each in one["entities"]} == {"A", "B"}
    for text, one in zip(texts, out, strict=True):
        ends = [0]
        for each in one["entities"]:
            assert list(each) == ["start", "end", "label", "score", "text"]
            assert each["text"] == text[each["start"] : each["end"]] == each["text"].strip() != ""
            assert 0.2 < each["score"] <= 1 and each["start"] >= ends[-1]
            ends.append(each["end"])
    row = next(row for row, one in zip(bundle.tokenizer.rows(texts), out, strict=True) if one["entities"])
    text, one = next((text, one) for text, one in zip(texts, out, strict=True) if one["entities"])
    assert len(row) <= 16, "in one row of the model"
    logits = bundle.model.apply({"params": bundle.params}, jnp.asarray(row.ids)[None])["logits"][0]
    expected = decode(words_of(row, text), np.asarray(jax.nn.softmax(logits)), BIO)
    assert [(each["start"], each["end"], each["label"]) for each in one["entities"]] == [span[:3] for span in expected]
    np.testing.assert_allclose([each["score"] for each in one["entities"]], [span[3] for span in expected], atol=1e-5)
    np.testing.assert_allclose(predictor.outputs([text])[0][: len(row)], logits, atol=1e-5)
    with pytest.raises(UserError, match="a token classifier has no scores of whole texts; call it instead"):
        predictor.scores(texts)


def test_a_text_longer_than_the_model_is_read_to_its_end(make_bundle):
    """A model that looks at single tokens says the same of a long text as of each of its words."""
    bundle = make_bundle("token_classification", BIO)
    predictor = infer.from_bundle(bundle, config=SMALL)
    table = np.random.default_rng(0).normal(size=(bundle.config.vocab_size, 5)).astype(np.float32)
    predictor.forward = functools.partial(by_id, table=table)
    (row,) = bundle.tokenizer.rows([LONG])
    assert len(row) > 3 * predictor.max_length
    words = words_of(row, LONG)
    scores = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    expected = decode(words, scores[row.ids], BIO)
    entities = predictor([LONG, "ab"])[0]["entities"]
    assert [(each["start"], each["end"], each["label"]) for each in entities] == [span[:3] for span in expected]
    np.testing.assert_allclose([each["score"] for each in entities], [span[3] for span in expected], rtol=1e-6)
    assert len(expected) > 5 and expected[-1][0] > 0.8 * len(LONG)
    short = words_of(bundle.tokenizer.rows([LONG], max_length=16)[0], LONG)
    assert max(each["end"] for each in entities) > 3 * short[-1].end
    with_pair = predictor([LONG], ["ab"])[0]["entities"]  # a pair is one row
    assert max(each["end"] for each in with_pair) <= short[-1].end
    assert predictor.outputs([LONG])[0].shape == (16, 5)


def test_windows_change_nothing_for_a_text_that_fits(make_predictor):
    predictor = make_predictor(head="token_classification", labels=BIO)
    texts = [text for text in make_texts() if len(predictor.tokenizer.rows([text])[0]) <= 16]
    assert 5 < len(texts) < 37
    encoded = predictor.encode(texts)
    assert max(map(len, encoded.rows.ids)) > 8
    plain = readings.read(predictor.signature, predictor.outputs(texts), texts, encoded.words)
    found = predictor(texts)
    assert any(one["entities"] for one in plain)
    for one, other in zip(found, plain, strict=True):
        assert [{**each, "score": 0} for each in one["entities"]] == [
            {**each, "score": 0} for each in other["entities"]
        ]
        np.testing.assert_allclose(*([each["score"] for each in part["entities"]] for part in (one, other)), atol=1e-5)


def test_labels_of_a_set_are_those_above_one_half(make_predictor):
    texts = make_texts()
    out = make_predictor(task="multi_label")(texts)
    counts = {len(one["labels"]) for one in out}
    assert len(counts) > 1
    for one, row in zip(out, make_predictor(task="multi_label").scores(texts), strict=True):
        assert list(one)[:2] == ["labels", "scores"] and list(one["scores"].values()) == row.tolist()
        assert one["labels"] == [name for name, score in one["scores"].items() if score > 0.5]


@pytest.mark.parametrize("types", [0, 2])
def test_a_pair_is_one_row_with_token_types_where_the_model_has_them(make_bundle, types):
    bundle = make_bundle(type_vocab_size=types)
    predictor, first, second = infer.from_bundle(bundle, config=SMALL), ["abc", "", "a b"], ["de f", "abc", ""]
    scores = predictor.scores(first, second)
    for number, row in enumerate(bundle.tokenizer.rows(first, second, 16)):
        kinds = jnp.asarray(row.type_ids)[None] if types else None
        ids = jnp.asarray(row.ids)[None]
        logits = bundle.model.apply({"params": bundle.params}, ids, token_type_ids=kinds)["logits"]
        np.testing.assert_allclose(scores[number], jax.nn.softmax(logits)[0], atol=1e-5)
    assert np.abs(scores - predictor.scores(second, first)).max() > 1e-3
    assert np.abs(scores - predictor.scores(first)).max() > 1e-3
    if types:
        untyped = jax.nn.softmax(bundle.model.apply({"params": bundle.params}, ids)["logits"])
        assert np.abs(scores[-1] - untyped[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["a"], "2 texts, 1 pairs; one each"),
        ([], "2 texts, 0 pairs; one each"),
        ("ab", "pairs must be a sequence of strings, not one string"),
    ],
)
@pytest.mark.parametrize("head", ["classification", "token_classification"])
def test_pairs_that_are_none_are_refused(make_predictor, head, pairs, message):
    predictor = make_predictor() if head == "classification" else make_predictor(head=head, labels=BIO)
    with pytest.raises(UserError, match=message):
        predictor(["a", "b"], pairs)


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "x", "O", "B-"), ("O", "S-A", "B-A", "E-A", "I-A"), BIO])
def test_labels_of_any_form_can_be_read(make_predictor, labels):
    predictor = make_predictor(head="token_classification", labels=labels)
    names = {each["label"] for one in predictor(make_texts()) for each in one["entities"]}
    kinds = {"O": None, "B-A": "A", "I-A": "A", "B-B": "B", "I-B": "B", "B-": ""}
    assert len(names) > 1 and names <= {kinds.get(label, label) for label in labels} - {None}


def test_a_scale_of_the_card_sharpens_scores_and_changes_no_label(make_bundle):
    bundle = make_bundle("token_classification", BIO)
    sharp = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, scale=4.0))
    texts = make_texts(8)
    one, other = (
        [each for out in infer.from_bundle(b, config=SMALL)(texts) for each in out["entities"]] for b in (bundle, sharp)
    )
    assert [each["text"] for each in one] == [each["text"] for each in other]
    assert np.mean([each["score"] for each in other]) > np.mean([each["score"] for each in one]) + 0.05
