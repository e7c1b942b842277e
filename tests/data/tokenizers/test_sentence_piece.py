from __future__ import annotations

import hashlib
import io
import random
import re
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers import SentencePieceTokenizer, from_config, load, sentence_piece, train

pytestmark = pytest.mark.once


def corpus(seed: int = 0) -> list[str]:
    """Returns 300 texts of words with a Zipfian frequency, some in Chinese."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(800)]
    words += ["".join(draw.choices("\u6211\u4eec\u4ed6\u597d\u4e66\u5f88\u4e0d\u559c\u6b22", k=3)) for _ in range(50)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=30)).capitalize() + "." for _ in range(300)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(cache) -> SentencePieceTokenizer:
    return train(corpus(), size=500, cache=cache)


def test_the_special_tokens_come_first_and_the_size_is_exact(tokenizer):
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == 500
    assert tokenizer.decode(ids[:1] + ids[2:]) == ""


def test_no_text_makes_a_special_token_or_a_byte(tokenizer):
    attacks = ["[PAD] [UNK] [CLS] [SEP] [MASK]", "[MASK]", "<unk><s></s>", "a\x00b", "\u2581[MASK]\u2581", "<0x41>"]
    for text, ids in zip(attacks, tokenizer.encode(attacks), strict=True):
        assert len(ids) and ids.min() > 4, text
    assert tokenizer.decode(tokenizer.encode(["<0x41> [MASK]"])[0]) == "<0x41> [mask]"


def test_any_text_survives_with_byte_fallback_and_becomes_unknown_without(tokenizer, cache):
    text = "\U0001f600 \u0436\u0938 na\u00efve"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    without = train(corpus(), size=400, byte_fallback=False, cache=cache)
    assert without.unk_id in without.encode([text])[0]
    assert without.unk_id not in without.encode([corpus()[0]])[0]


def test_encode_gives_int32_without_special_tokens(tokenizer):
    full, empty = tokenizer.encode([corpus()[0], "  "])
    assert full.dtype == empty.dtype == np.int32
    assert full.ndim == 1 and full.min() > 4 and len(empty) == 0


def test_rows_hold_special_tokens_types_and_sequences(tokenizer):
    (a, b) = tokenizer.encode(corpus()[:2])
    single, pair = tokenizer.rows(corpus()[:1])[0], tokenizer.rows(corpus()[:1], corpus()[1:2])[0]
    assert single.ids.tolist() == [2, *a, 3] == tokenizer.with_specials(a).tolist()
    assert single.type_ids.tolist() == [0] * (len(a) + 2) and single.sequence.tolist() == [-1, *[0] * len(a), -1]
    assert pair.ids.tolist() == [2, *a, 3, *b, 3]
    assert pair.type_ids.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert pair.sequence.tolist() == [-1, *[0] * len(a), -1, *[1] * len(b), -1]
    assert [value.dtype for value in (pair.ids, pair.type_ids, pair.offsets, pair.sequence)] == [
        np.int32, np.int32, np.int32, np.int8
    ]  # fmt: skip
    shorter = tokenizer.rows(corpus()[:1], corpus()[1:2], max_length=13)[0]
    assert shorter.ids.tolist() == [2, *a[:5], 3, *b[:5], 3]
    assert tokenizer.rows([]) == []


@settings(deadline=None, max_examples=300)
@given(st.text("abcdefgh IJ.\u6211\u4eec\u597d\u9f98\uff21\uff0c\u2460\u3000\U0001f600\u00e9\u0436", max_size=30))
def test_offsets_are_characters_of_the_original_text(tokenizer, text):
    row = tokenizer.rows([text])[0]
    inside = row.sequence == 0
    assert row.ids[inside].tolist() == tokenizer.encode([text])[0].tolist()
    assert (row.offsets[~inside] == 0).all()
    end = 0
    for token, (start, stop) in zip(row.ids[inside], row.offsets[inside], strict=True):
        surface, piece = text[start:stop], tokenizer._processor.IdToPiece(int(token)).strip("\u2581")
        if tokenizer._processor.IsByte(int(token)):
            assert stop == start + 1  # of each byte of a character, in the text as it was before any normalisation
            assert bytes([int(piece[3:5], 16)]) in normal(surface).encode()
        else:
            assert start >= end and normal(surface) == piece
        end = stop
    assert not text[end:].strip()


def normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def test_offsets_with_emoji_and_chinese(tokenizer):
    text = "\U0001f600\u6211\u4eec \uff21b"
    row = tokenizer.rows([text])[0]
    surfaces = [text[start:stop].strip() for start, stop in row.offsets[1:-1]]
    assert surfaces.count("\U0001f600") == 4 and "".join(dict.fromkeys(surfaces)) == text.replace(" ", "")


def test_lowercase_folds_case_and_its_absence_keeps_it(tokenizer, cache):
    cased = train(corpus(), size=500, lowercase=False, cache=cache)
    text = corpus()[0]
    assert text != text.casefold()
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text.casefold()
    assert cased.decode(cased.encode([text])[0]) == text
    wide = "\uff21\uff22 \u2460"  # NFKC with both
    assert tokenizer.decode(tokenizer.encode([wide])[0]) == "ab 1"
    assert cased.decode(cased.encode([wide])[0]) == "AB 1"


def test_a_vocabulary_of_characters_has_a_token_for_each_of_them(tokenizer, cache):
    texts = [*corpus(), "\u623f\u95f4\u5f88\u5e72\u51c0\uff0c 10 caf\u00e9s."] * 2
    chars = train(texts, "char", size=8192, cache=cache)
    pieces = [chars._processor.IdToPiece(token) for token in range(chars.vocab_size)]
    assert {len(piece) for piece in pieces[5 + 256 :]} == {1} and 5 + 256 + 20 < len(pieces) < 400, (
        "no more than there are"
    )
    text = "\u6211\u4eec\u597d Abc."
    (row,) = chars.rows([text])
    surfaces = [text[start:end] for start, end in row.offsets[1:-1].tolist()]
    assert surfaces == ["", *text], "the first marks the beginning"
    starts = chars.word_starts[row.ids[1:-1]]
    assert starts.tolist() == [True] * 5 + [False] * 3 + [True], "characters, the mark of a space, and the full stop"
    assert len(tokenizer.rows([text])[0]) < len(row)
    assert chars.decode(row.ids) == text.lower()


def test_the_size_of_a_vocabulary_of_characters_is_a_limit(cache):
    many = ["".join(map(chr, range(0x4E00, 0x4E00 + count))) for count in range(1, 200)]  # the first are most frequent
    whole, limited = (train(many, "char", size=size, cache=cache) for size in (8192, 300))
    assert whole.vocab_size > 400 and limited.vocab_size == 300
    assert len(limited.encode(["\u4e00\u4e01"])[0]) == 1 + 2
    assert len(limited.encode([chr(0x4E00 + 150)])[0]) == 1 + 3, "the others are bytes"
    config = DataConfig(tokenizer="char", tokenizer_size=300, cache=cache)
    assert from_config(config, many).fingerprint == limited.fingerprint


def test_training_is_deterministic_and_cached_by_content(tokenizer, cache, tmp_path, monkeypatch):
    assert train(corpus(), size=500, cache=str(tmp_path)).fingerprint == tokenizer.fingerprint
    others = [train(corpus(1), size=500, cache=cache), train(corpus(), "bpe", size=500, cache=cache)]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 3

    def refuse(**_):
        raise AssertionError("trained again")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", refuse)
    assert train(corpus(), size=500, cache=cache).fingerprint == tokenizer.fingerprint
    with pytest.raises(AssertionError, match="trained again"):
        train(corpus(2), size=500, cache=cache)


def test_a_large_corpus_is_sampled_by_the_seed(cache, monkeypatch):
    monkeypatch.setattr(sentence_piece, "TRAINING_SENTENCES", 200)
    first, again = (train(corpus(), size=400, seed=0, cache=cache).fingerprint for _ in range(2))
    assert first == again != train(corpus(), size=400, seed=1, cache=cache).fingerprint


def test_a_sentence_longer_than_sentencepiece_takes_is_cut_and_not_lost(cache):
    text = " ".join(corpus()).replace(".", "")  # one sentence of 50,000 characters
    assert len(text) > 10 * 4192
    assert train([text], size=500, cache=cache).encode([text])[0].max() > 261  # pieces beyond the bytes


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_size_that_the_corpus_cannot_give_names_one_that_it_can(model_type, cache):
    texts = ["a small corpus", "that is small"]
    with pytest.raises(UserError, match=r"data\.tokenizer_size=8192: too many for this corpus.* at most \d+") as caught:
        train(texts, model_type, size=8192, cache=cache)
    size = int(re.findall(r"at most (\d+)", str(caught.value))[0])
    assert train(texts, model_type, size=size, cache=cache).vocab_size == size
    many = ["".join(map(chr, range(0x4E00 + start, 0x4E00 + start + 50))) for start in range(0, 500, 50)]
    with pytest.raises(
        UserError, match=r"data\.tokenizer_size=300: too few for this corpus, .* need \d+ pieces"
    ) as caught:
        train(many, model_type, size=300, cache=cache)
    size = int(re.findall(r"need (\d+)", str(caught.value))[0])
    assert train(many, model_type, size=size, cache=cache).vocab_size == size


def test_an_empty_corpus_is_an_error(cache):
    with pytest.raises(UserError, match="the corpus holds no text"):
        train(["", " \n "], cache=cache)


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    tokenizer.save(tmp_path / "tokenizer")  # the same again is no harm
    for config in (str(tmp_path), str(tmp_path / "tokenizer")):
        loaded = from_config(DataConfig(tokenizer=config), ["unused"])
        assert loaded.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(loaded.encode(corpus())[7], tokenizer.encode(corpus())[7])


def test_another_tokenizer_is_not_overwritten(tokenizer, cache, tmp_path):
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="is another tokenizer, which is not overwritten"):
        train(corpus(), "bpe", size=500, cache=cache).save(tmp_path)
    assert load(tmp_path).fingerprint == tokenizer.fingerprint


def test_from_config_trains_what_the_config_says(cache):
    config = DataConfig(tokenizer="bpe", tokenizer_size=450, byte_fallback=False, lowercase=False, cache=cache)
    expected = train(corpus(), "bpe", 450, byte_fallback=False, lowercase=False, cache=cache)
    assert from_config(config, corpus()).fingerprint == expected.fingerprint


def test_missing_and_damaged_tokenizers(tokenizer, tmp_path):
    with pytest.raises(
        UserError,
        match=r"data\.tokenizer='.*/no': must be one of 'unigram', 'bpe', 'char', a tokenizer's folder",
    ):
        from_config(DataConfig(tokenizer=str(tmp_path / "no")), [])
    with pytest.raises(UserError, match=r"holds no tokenizer; it must have tokenizer\.model and tokenizer\.sha256"):
        load(tmp_path)
    tokenizer.save(tmp_path)
    model = tmp_path / "tokenizer.model"
    whole = model.read_bytes()
    model.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"tokenizer\.model: is damaged, its sha256 is not that of tokenizer\.sha256"):
        load(tmp_path)


def test_the_model_of_another_program_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=300, minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer.sha256").write_text(hashlib.sha256(model.getvalue()).hexdigest() + "  tokenizer.model\n")
    with pytest.raises(UserError, match="is no tokenizer of this package"):
        load(tmp_path)
