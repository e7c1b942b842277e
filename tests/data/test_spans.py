"""Spans to classes of tokens and back, over several tokenizers and scripts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.data import tokenizers
from lepton_jax.data.spans import align, bio_labels, decode, from_tags, join_words, unreachable, words_of
from lepton_jax.data.tokenizers.pretrained import PretrainedTokenizer

pytestmark = pytest.mark.once

TEXTS = [
    "Angela Merkel (Berlin) met John's friend at 10:30, in New-York.",
    "@user I love São Paulo!!! 😀😀 naïve café",
    "在北京的李明1998年去了Microsoft公司。",
    "  two  spaces\tand a tab ",
    "ＦＵＬＬ ｗｉｄｔｈ and e\u0301 accents",
]
LABELS = bio_labels(("PER", "LOC"))


@pytest.fixture(scope="module", params=["unigram", "char", "wordpiece", "bytes"])
def tokenizer(request, cache):
    if request.param in ("unigram", "char"):
        return tokenizers.train(TEXTS * 20, request.param, size=330, cache=cache)
    if request.param == "wordpiece":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127)), *"在北京的李明年去了公司。"]
        vocabulary = [*pieces, *(f"##{chr(code)}" for code in range(97, 123)), "new", "york", "mer", "##kel", "angela"]
        files = {"vocab.txt": "\n".join(vocabulary).encode(), "tokenizer_config.json": b'{"do_lower_case": true}'}
        return PretrainedTokenizer(files, "bert")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    model.train_from_iterator(TEXTS, trainer)
    return PretrainedTokenizer({"tokenizer.json": model.to_str().encode()}, "gpt2")


def one_hot(classes, length):
    scores = np.zeros((length, len(LABELS)))
    scores[np.arange(length), np.where(classes < 0, 1, classes)] = 0.75  # what does not decide says "B-LOC"
    return scores


def test_words_are_runs_of_letters_and_single_other_characters(tokenizer):
    for text in TEXTS:
        (encoded,) = tokenizer.rows([text])
        words = words_of(encoded, text)
        covered = [text[word.start : word.end] for word in words]
        assert all(word == word.strip() and word for word in covered)
        assert [word.first for word in words] == sorted({word.first for word in words})
        assert all(a.end <= b.start for a, b in itertools.pairwise(words))
        assert "".join(covered) in "".join(text.split()) or "😀" in text or "e\u0301" in text, "nothing is lost"
    found = [TEXTS[0][w.start : w.end] for w in words_of(tokenizer.rows([TEXTS[0]])[0], TEXTS[0])]
    assert found[:7] == ["Angela", "Merkel", "(", "Berlin", ")", "met", "John"]
    assert found[-6:] == [",", "in", "New", "-", "York", "."]
    (chinese,) = tokenizer.rows([TEXTS[2]])
    assert "Microsoft" in {TEXTS[2][w.start : w.end] for w in words_of(chinese, TEXTS[2])}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_spans_of_whole_words_survive_the_way_to_classes_and_back(tokenizer, data):
    text = data.draw(st.sampled_from(TEXTS))
    (encoded,) = tokenizer.rows([text])
    words = words_of(encoded, text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words)), min_size=2, max_size=6)))
    kinds = data.draw(st.lists(st.sampled_from(["PER", "LOC", ""]), min_size=len(cuts), max_size=len(cuts)))
    spans = [
        (words[first].start, words[last - 1].end, kind)
        for first, last, kind in zip(cuts, cuts[1:], kinds, strict=False)
        if kind
    ]
    classes = align(words, len(encoded), spans, LABELS)
    assert unreachable(words, spans) == 0 and (classes >= 0).sum() == len(words)
    found = decode(words, one_hot(classes, len(encoded)), LABELS)
    assert [span[:3] for span in found] == spans and all(span[3] == 0.75 for span in found)


ODD = ("ab XY ,.'09\t\n\u00e9\u0130\u00df\u4e66\u597d\uff0c\u3000\u00a0\u200b\u200d\u2581\U0001f600\u0301\ufb01\u2460"
       "\u0e33\u1100\u1161\u00ad\x00\ufffd\u2028[]<>/\uff21\u0936\u093f\U0001f468\ufe0f")  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(text=st.text(ODD, max_size=20))
def test_words_of_any_text_are_parts_of_it_in_order(tokenizer, text):
    (encoded,) = tokenizer.rows([text])
    words = words_of(encoded, text)
    assert all(text[word.start : word.end].strip() == text[word.start : word.end] != "" for word in words)
    assert all(a.end <= b.start and a.first < b.first for a, b in itertools.pairwise(words))
    for word in words:
        start, end = encoded.offsets[word.first]
        assert encoded.sequence[word.first] == 0 and start <= word.start < end
    spans = [(word.start, word.end, "PER") for word in words[::2]]
    found = decode(words, one_hot(align(words, len(encoded), spans, LABELS), len(encoded)), LABELS)
    assert [span[:3] for span in found] == spans and unreachable(words, spans) == 0


def test_each_chinese_character_can_begin_and_end_a_span_with_a_vocabulary_of_characters(cache):
    text = "\u5728\u5317\u4eac\u7684\u674e\u660e"
    spans = [(1, 3, "LOC"), (4, 6, "PER")]
    chars = tokenizers.train(TEXTS * 20, "char", size=330, cache=cache)
    assert unreachable(words_of(chars.rows([text])[0], text), spans) == 0
    longer = tokenizers.train([text] * 50 + ["a b c"], "bpe", size=273, cache=cache)
    assert unreachable(words_of(longer.rows([text])[0], text), spans) > 0, "pieces of several characters do not"


def test_what_is_cut_off_or_within_a_word_is_counted(tokenizer):
    text = TEXTS[0]
    spans = [(0, 13, "PER"), (15, 18, "LOC"), (text.index("New"), text.index("New") + 8, "LOC")]
    words = words_of(tokenizer.rows([text])[0], text)
    assert unreachable(words, spans) == 1, "Ber is a part of Berlin"
    short = words_of(tokenizer.rows([text], max_length=14)[0], text)
    assert 0 < len(short) < len(words) and unreachable(short, spans) >= 2
    classes = align(words, 99, spans, LABELS)
    assert [LABELS[c] for c in classes[classes >= 0]][:5] == ["B-PER", "I-PER", "O", "B-LOC", "O"]


def test_decoding_forgives_a_missing_beginning_and_parts_neighbours(tokenizer):
    text = "a b c d e f"
    (encoded,) = tokenizer.rows([text])
    words = words_of(encoded, text)
    scores = np.full((len(encoded), 5), 0.1)
    for word, label in zip(words, ["I-PER", "I-PER", "I-LOC", "B-LOC", "O", "I-LOC"], strict=True):
        scores[word.first, LABELS.index(label)] = 0.6 if label == "I-PER" else 0.4
    found = decode(words, scores, LABELS)
    assert [(text[s:e], kind) for s, e, kind, _ in found] == [("a b", "PER"), ("c", "LOC"), ("d", "LOC"), ("f", "LOC")]
    assert [round(score, 6) for *_, score in found] == [0.6, 0.4, 0.4, 0.4]
    other = decode(words, scores, ("LABEL_0", "O", "NAME", "x", "y"))
    assert {kind for _, _, kind, _ in other} <= {"LABEL_0", "NAME", "x", "y"}


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-A I-A O B-B B-B", [(0, 3, "A"), (6, 7, "B"), (8, 9, "B")]),
        ("I-A I-A O I-B B-B", [(0, 3, "A"), (6, 7, "B"), (8, 9, "B")]),  # IOB1
        ("B-A E-A O S-B S-B", [(0, 3, "A"), (6, 7, "B"), (8, 9, "B")]),
        ("B-A L-A O U-B I-B", [(0, 3, "A"), (6, 7, "B"), (8, 9, "B")]),
        ("I-A I-B I-B O O", [(0, 1, "A"), (2, 5, "B")]),
    ],
)
def test_tags_of_several_forms(tags, spans):
    text, places = join_words(list("abcde"))
    assert text == "a b c d e" and list(from_tags(places, tags.split())) == spans


def test_words_are_joined_with_spaces_where_their_script_has_them():
    text, places = join_words(["我", "，", "在", "New", "York", "的", "家", "", "."])
    assert text == "我，在 New York 的家 ." and [text[s:e] for s, e in places][3:5] == ["New", "York"]
    for wrong in ("X-PER", "PER", "B-", "B"):
        with pytest.raises(ValueError, match="must be O, or such as B-TYPE"):
            from_tags([(0, 1)], [wrong])
