"""Which tokens begin a word: the rules on single pieces, and the words of a sentence in every kind of vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jax.data import tokenizers
from lepton_jax.data.tokenizers import words

pytestmark = pytest.mark.once

GREEK_BYTES = "Î±"  # how GPT-2's alphabet writes alpha
CASES = {
    "▁": {"▁film": 1, "film": 0, "▁": 1, "s": 0, "7": 0, ".": 1, "▁(": 1, "房间": 1, "の": 1, "α": 0,
          "<0xE4>": 0, "<0x2C>": 1, "<0x61>": 0, "<": 1, "\u0301": 0, "": 0},
    "##": {"film": 1, "##s": 0, ".": 1, "房": 1, "##房": 0},
    "Ġ": {"Ġfilm": 1, "film": 0, "Ġ": 1, "Ċ": 1, ".": 1, GREEK_BYTES: 0, "Î": 0, "æĪ¿": 1, "7": 0, "": 0},
}  # fmt: skip


@pytest.mark.parametrize(("mark", "piece"), [(mark, piece) for mark, pieces in CASES.items() for piece in pieces])
def test_single_pieces(mark, piece):
    assert words.starts([piece], mark).tolist() == [bool(CASES[mark][piece])]


def test_the_bytes_of_a_chinese_character_spell_it():
    assert bytes(words._BYTES[char] for char in "æĪ¿").decode() == "房"


def cut(tokenizer, text):
    """Returns the words that a text falls into, as pairs of offsets."""
    (row,) = tokenizer.rows([text])
    inside = row.sequence == 0
    starts = tokenizer.word_starts[row.ids[inside]]
    starts[0] = True
    offsets = row.offsets[inside]
    ends = np.append(np.flatnonzero(starts)[1:] - 1, len(starts) - 1)
    return [(int(offsets[a, 0]), int(offsets[b, 1])) for a, b in zip(np.flatnonzero(starts), ends, strict=True)]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "albert", "deberta", "xlm-roberta", "modernbert"])
def test_a_sentence_falls_into_its_words(kind_folder, kind):
    tokenizer = tokenizers.load(kind_folder(kind))
    assert tokenizer.word_starts.shape == (tokenizer.vocab_size,) and tokenizer.word_starts.dtype == bool
    text = "an unforgettable screenwriter laughs, then disappears."
    (row,) = tokenizer.rows([text])
    assert len(row) > 12, "words must have several tokens"
    assert [text[a:b].strip() for a, b in cut(tokenizer, text)] == [
        "an", "unforgettable", "screenwriter", "laughs", ",", "then", "disappears", "."
    ]  # fmt: skip


def test_our_own_vocabulary_marks_words_and_leaves_chinese_pieces_alone(corpus, cache):
    texts = (corpus / "text.txt").read_text().split("\n\n") + ["房间很干净", "服务员非常热情"] * 20
    tokenizer = tokenizers.train(texts, size=420, cache=cache)
    text = "an unforgettable film, then 房间"
    assert [text[a:b].strip() for a, b in cut(tokenizer, text)][:5] == ["an", "unforgettable", "film", ",", "then"]
    ids = tokenizer.encode(["很干净房间"])[0]
    assert len(ids) > 1 and tokenizer.word_starts[ids[1:]].all()
