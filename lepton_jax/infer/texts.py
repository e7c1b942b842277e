"""Texts as rows of a model, what is no text, and what a person should know of how one was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.rows import Rows
from lepton_jax.data.spans import Word, words_of
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.infer.signature import Signature


class Encoded(NamedTuple):
    rows: Rows
    words: list[list[Word]]  # of a token classifier: those that each row shows
    sizes: list[tuple[int, int]]  # of each text, special tokens not counted: those that it has, those of its row


def require_sequences(texts: Any, pairs: Any) -> None:
    """Raises UserError for what is no sequence of texts, or of as many second ones."""
    for name, given in (("texts", texts), ("pairs", pairs)):
        if isinstance(given, (str, bytes)):
            raise UserError(f"predictor(texts): {name} must be a sequence of strings, not one string")
    if pairs is not None and len(pairs) != len(texts):
        raise UserError(f"predictor(texts, pairs): {len(texts)} texts, {len(pairs)} pairs; one each")


def faults(texts: Sequence[Any], pairs: Sequence[Any] | None) -> dict[int, str]:
    """Returns number -> what is wrong with it, of each text, or of its pair, that no tokenizer can read."""
    found = {}
    for number, text in enumerate(texts):
        for name, given in (("text", text), ("second text", "" if pairs is None else pairs[number])):
            if isinstance(given, Exception):  # of whoever was to read it
                found.setdefault(number, str(given))
            elif not isinstance(given, str):
                found.setdefault(number, f"the {name} is {type(given).__name__}, not a string")
            elif not given.isascii() and (place := _no_character(given)) is not None:
                found.setdefault(number, f"the {name} has half a character (a lone surrogate) at {place}")
    return found


def _no_character(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def encode(
    signature: Signature, tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Encoded:
    """Returns texts, or pairs of them, as rows of at most the model's length; what lies beyond is left out."""
    special = len(tokenizer.with_specials(np.zeros(0, np.int32)))
    if pairs is None and not signature.classifies_tokens:
        # Not `tokenizer.rows`: that also finds where each token lies in its text, in several times the time.
        whole = tokenizer.encode(texts)
        room = signature.max_length - special
        rows = Rows([tokenizer.with_specials(ids[:room]) for ids in whole])
        return Encoded(rows, [], [(len(ids), min(len(ids), room)) for ids in whole])
    encoded = tokenizer.rows(texts, pairs, signature.max_length)
    words, kept = [], [int((row.sequence >= 0).sum()) for row in encoded]
    sizes = list(kept)
    full = [number for number, row in enumerate(encoded) if len(row) == signature.max_length]  # these may be longer
    sides = [tokenizer.encode([side[number] for number in full]) for side in (texts, pairs) if side is not None]
    for number, *parts in zip(full, *sides, strict=True):
        sizes[number] = sum(map(len, parts))
    if signature.classifies_tokens:
        words = [words_of(row, text) for row, text in zip(encoded, texts, strict=True)]
    types = [row.type_ids for row in encoded] if pairs is not None and signature.typed else None
    return Encoded(Rows([row.ids for row in encoded], types=types), words, list(zip(sizes, kept, strict=True)))


def warning(tokenizer: Tokenizer, ids: np.ndarray, size: int, kept: int) -> str | None:
    """Returns what a person should know before they trust what is said of a text.

    Args:
      tokenizer: of the row.
      ids: int32 [n], the row of the text.
      size: how many tokens the text has in all.
      kept: how many of them were read.
    """
    if not size:
        return "the text is empty"
    if tokenizer.unk_id is not None and int((ids == tokenizer.unk_id).sum()) >= kept:
        return "no token of the text is in the model's vocabulary"
    if kept < size:
        return f"read were the first {kept} of the text's {size} tokens"
    return None
