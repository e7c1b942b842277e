"""Integrated gradients: completeness, an independent float64 reference, what is explained, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import reference

from lepton_jax import infer
from lepton_jax.attribution import gradients, integrated_gradients
from lepton_jax.compress import quantize_int8
from lepton_jax.core.errors import UserError

TEXTS = ["bright and sour", "a sweet one, bleak", "sour"]
TAGS = ("O", "B-THING", "I-THING")


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle(positions="learned")


def test_equals_a_float64_reference(bundle):
    """NumPy in float64: another encoder, differences in place of gradients, the midpoint rule in place of Gauss's."""
    found = integrated_gradients(bundle, TEXTS[:1], target="fair", baseline="pad", steps=24)[0]
    (row,) = bundle.tokenizer.rows(TEXTS[:1])
    T, points, step = len(row), 64, 1e-4
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), bundle.params)
    table = params["embeddings"]["token"]
    end, start = table[row.ids], table[np.where(row.sequence < 0, row.ids, bundle.tokenizer.pad_id)]

    def f(vectors):
        own = params | {"embeddings": params["embeddings"] | {"token": vectors}}
        hidden = reference.encode(bundle.config, own, np.arange(T), np.ones(T, int), np.arange(T)).mean(0)
        pooled = np.tanh(reference.linear(hidden, params["pooler"]["dense"]))
        return reference.linear(pooled, params["head"]["output"])[bundle.card.labels.index("fair")]

    wanted = np.zeros(T)
    for share in (np.arange(points) + 0.5) / points:
        between = start + share * (end - start)
        for token in range(T):
            move = np.zeros_like(end)
            move[token] = step * (end - start)[token]
            wanted[token] += (f(between + move) - f(between - move)) / (2 * step * points)
    assert np.abs(wanted).max() > 0.05 and (wanted > 0).any() and (wanted < 0).any()
    np.testing.assert_allclose(found.token_scores, wanted, atol=2e-4)
    np.testing.assert_allclose((found.value, found.base), (f(end), f(start)), atol=1e-5)


@pytest.mark.parametrize("baseline", ["mask", "pad", "zero"])
def test_scores_are_complete(bundle, baseline):
    for each in integrated_gradients(bundle, TEXTS, baseline=baseline):
        total = each.token_scores.sum()
        assert abs(each.value - each.base) > 1e-3 and each.error < 1e-2 * abs(each.value - each.base)
        assert each.error == pytest.approx(abs(total - (each.value - each.base)))
        assert sum(word.score for word in each.words) == pytest.approx(total, abs=1e-9)
    assert integrated_gradients(bundle, TEXTS, baseline=baseline, steps=1)[1].error > each.error


def test_baselines_differ_and_leave_special_tokens_alone(bundle):
    mask, pad, zero = (integrated_gradients(bundle, TEXTS, baseline=name) for name in ("mask", "pad", "zero"))
    bases = np.array([[each.base for each in found] for found in (mask, pad, zero)])
    assert (np.abs(np.diff(bases, axis=0)) > 1e-4).all()
    for each in (*mask, *pad, *zero):
        assert each.tokens[0] == "[CLS]" and each.tokens[-1] == "[SEP]"
        assert each.token_scores[0] == each.token_scores[-1] == 0 and (each.token_scores[1:-1] != 0).all()
    assert (bundle.tokenizer.mask_id, bundle.tokenizer.pad_id) != (bundle.tokenizer.pad_id, bundle.tokenizer.mask_id)


def test_words_carry_scores_at_their_place(bundle):
    for each, text in zip(integrated_gradients(bundle, TEXTS), TEXTS, strict=True):
        assert [text[word.start : word.end] for word in each.words] == text.replace(",", " ,").split()
        (row,) = bundle.tokenizer.rows([text])
        for word in each.words:  # a token is of the word in which its last character lies
            own = [score for (_, end), score in zip(row.offsets, each.token_scores, strict=True)
                   if word.start < end <= word.end]  # fmt: skip
            assert own and word.score == pytest.approx(sum(own), abs=1e-9)
    cut = integrated_gradients(bundle, ["bright sour " * 30])[0]
    assert 0 < cut.words[-1].end < len(cut.text)


def test_batches_are_one_program_and_do_not_matter(bundle):
    whole = integrated_gradients(bundle, TEXTS, batch_size=8)
    before = gradients._integrate._cache_size()
    parts = integrated_gradients(bundle, TEXTS, batch_size=2)
    assert gradients._integrate._cache_size() == before + 1
    alone = integrated_gradients(bundle, TEXTS[2:])[0]
    for one, other in [*zip(whole, parts, strict=True), (whole[2], alone)]:
        np.testing.assert_allclose(one.token_scores, other.token_scores, atol=1e-6)
        assert one.words and one.target == other.target


def test_explains_the_label_that_is_asked_for(bundle):
    likeliest = infer.from_bundle(bundle)(TEXTS)
    found = integrated_gradients(bundle, TEXTS)
    assert [each.target for each in found] == [each["label"] for each in likeliest]
    named = integrated_gradients(bundle, TEXTS, target=["bad", "fair", "good"])
    assert [each.target for each in named] == ["bad", "fair", "good"]
    other = integrated_gradients(bundle, TEXTS, target="good")
    assert other[0].target == "good" and np.abs(other[0].token_scores - named[0].token_scores).max() > 1e-3
    np.testing.assert_allclose(other[2].token_scores, named[2].token_scores, atol=1e-6)


def test_values_are_those_of_the_predictor(make_bundle):
    for labels, outputs in ((("bad", "fair", "good"), 3), ((), 1)):
        made = make_bundle("classification", labels)
        made = dataclasses.replace(made, card=dataclasses.replace(made.card, scale=1.7, offset=0.0 if labels else 0.4))
        predictor, found = infer.from_bundle(made), integrated_gradients(made, TEXTS)
        raw = np.stack(predictor.outputs(TEXTS))
        assert raw.shape == (3, outputs)
        wanted = predictor.scores(TEXTS)[:, 0] if not labels else 1.7 * raw.max(-1)
        np.testing.assert_allclose([each.value for each in found], wanted, atol=1e-5)
        assert all(each.error < 1e-2 * abs(each.value - each.base) for each in found)
        assert labels or {each.target for each in found} == {"number"}


def test_explains_spans(make_bundle):
    tagger = make_bundle("token_classification", TAGS)
    texts = TEXTS[:2]
    spans = [{"start": 0, "end": 10, "label": "THING"}, {"start": 2, "end": 7, "label": "THING"}]
    found = integrated_gradients(tagger, texts, target=spans)
    outputs = infer.from_bundle(tagger).outputs(texts)
    rows = tagger.tokenizer.rows(texts)
    first = {}
    for number, row in enumerate(rows):  # the number of the token at a character
        first[number] = {int(start): token for token, (start, _) in enumerate(row.offsets) if row.sequence[token] == 0}
    at = [
        np.mean([outputs[0][first[0][0], 1], outputs[0][first[0][min(p for p in first[0] if p >= 6)], 2]]),
        outputs[1][first[1][min(p for p in first[1] if p >= 1)], 1],
    ]
    np.testing.assert_allclose([each.value for each in found], at, atol=1e-5)
    assert [each.target for each in found] == ["THING", "THING"]
    assert all(each.error < 1e-2 * abs(each.value - each.base) for each in found)
    own = integrated_gradients(tagger, texts)
    assert {each.target for each in own} <= {"its spans", "no span"}


def test_a_model_of_spans_without_any_in_a_text_explains_all_its_words(make_bundle):
    tagger = make_bundle("token_classification", TAGS)
    output = tagger.params["head"]["output"]
    quiet = tagger.params | {"head": {"output": output | {"bias": output["bias"] + np.float32([99, 0, 0])}}}
    (found,) = integrated_gradients(dataclasses.replace(tagger, params=quiet), TEXTS[:1])
    assert found.target == "no span" and found.value > 90


def test_equals_pytorch(tmp_path, make_bundle):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from lepton_jax import hub

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=448, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, initializer_range=0.3, id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = dataclasses.replace(hub.load(tmp_path, "classification"), tokenizer=make_bundle().tokenizer)
    found = integrated_gradients(ours, TEXTS[:1], target="good", baseline="zero")[0]
    (row,) = ours.tokenizer.rows(TEXTS[:1])
    end = theirs.bert.embeddings.word_embeddings(torch.tensor(row.ids.astype(np.int64))).detach()
    start = torch.where(torch.tensor(row.sequence < 0)[:, None], end, torch.zeros_like(end))
    shares = (torch.arange(256)[:, None, None] + 0.5) / 256
    vectors = (start + shares * (end - start)).requires_grad_()
    theirs(inputs_embeds=vectors).logits[:, 1].mean().backward()
    total = vectors.grad.sum(0)
    wanted = (total * (end - start)).sum(-1).numpy()
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found.token_scores, wanted, atol=1e-3 * np.abs(wanted).max())


def test_weights_without_gradients_are_refused(bundle):
    card = dataclasses.replace(bundle.card, weights="int8")
    int8 = dataclasses.replace(bundle, params=quantize_int8(bundle.params), card=card)
    with pytest.raises(UserError, match=r"int8 weights round what they multiply.*load the model in float32"):
        integrated_gradients(int8, TEXTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one"}, "texts must be a sequence of at least one string"),
        ({"texts": []}, "texts must be a sequence of at least one string"),
        ({"texts": ["one", None]}, "element 1 of the texts is NoneType, not a string"),
        ({"target": "goood"}, "target='goood': not a label of the model; did you mean \"good\""),
        ({"target": ["good"]}, "target: 1 labels for 3 texts; give one each"),
        ({"baseline": "none"}, "baseline='none': must be mask, pad or zero"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_what_cannot_be_explained_is_refused(bundle, arguments, message):
    with pytest.raises(UserError, match=message):
        integrated_gradients(bundle, **({"texts": TEXTS} | arguments))


def test_models_that_cannot_be_explained_are_refused(bundle, make_bundle):
    with pytest.raises(UserError, match="head 'masked_lm' and predicts no labels; fine-tune it first"):
        integrated_gradients(make_bundle("masked_lm", ()), TEXTS)
    with pytest.raises(UserError, match="head is a new one and has learnt nothing"):
        integrated_gradients(dataclasses.replace(bundle, initialised=("head",)), TEXTS)
    with pytest.raises(UserError, match=r"target='good': the model gives a number, not labels"):
        integrated_gradients(make_bundle("classification", ()), TEXTS, target="good")
    with pytest.raises(UserError, match=r"baseline='zero': with model.positions='rotary' nothing is left of a vector"):
        integrated_gradients(make_bundle(), TEXTS, baseline="zero")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("THING", "a classifier of tokens needs a span"),
        ([{"start": 0, "end": 3, "label": "THING"}], "a classifier of tokens needs a span"),
        ([{"start": 0, "end": 3, "label": "THINK"}] * 3, "'THINK' is not a type of spans of the model; did you mean"),
        ([{"start": 90, "end": 93, "label": "THING"}] * 3, "the span 90 to 93 has no word"),
    ],
)
def test_spans_that_are_none_are_refused(make_bundle, target, message):
    with pytest.raises(UserError, match=message):
        integrated_gradients(make_bundle("token_classification", TAGS), TEXTS, target=target)
