"""Which tokens begin a word, told by the token alone: what whole-word masks are made of.

A token begins a word if its vocabulary marks it so, or if its first character is no part of a word written with others:
punctuation, symbols, and the scripts that put no spaces between words. A Chinese, Japanese or Thai token is therefore a
word of its own; a suffix, a digit, a byte of a character, or a letter after punctuation continues the word before it.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import Literal

import numpy as np

# "▁" before the first piece of a word (SentencePiece), "Ġ" likewise in an alphabet of bytes (GPT-2), "##" before every
# other one (WordPiece).
Mark = Literal["▁", "Ġ", "##"]

# How Unicode names the letters of scripts without spaces between words.
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "HALFWIDTH KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")


def starts(pieces: Iterable[str], mark: Mark) -> np.ndarray:
    """Returns bool [V]: whether each piece of a vocabulary begins a word."""
    return np.array([_starts(piece, mark) for piece in pieces], bool)


def _starts(piece: str, mark: Mark) -> bool:
    if mark == "##":
        return not piece.startswith("##")
    if mark == "▁":
        if len(piece) == 6 and piece.startswith("<0x"):  # a byte of a character that has no piece
            return int(piece[3:5], 16) < 0x80 and _alone(chr(int(piece[3:5], 16)))
        return piece.startswith("▁") or _alone(piece)
    text = bytes(_BYTES[char] for char in piece if char in _BYTES).decode("utf-8", "ignore")
    return _alone(text)


def _alone(text: str) -> bool:
    """Whether the first character is no letter, digit or accent of a script with spaces between words."""
    return bool(text) and not joins(text[0])


@functools.lru_cache(maxsize=65536)
def joins(character: str) -> bool:
    """Whether a character is a letter, digit or accent of a script with spaces between words."""
    return unicodedata.category(character)[0] in "LMN" and not unspaced(character)


@functools.lru_cache(maxsize=65536)
def unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    return unicodedata.name(character, "").startswith(_UNSPACED)


def _byte_alphabet() -> dict[str, int]:
    """Returns character -> byte of GPT-2's vocabulary: printable bytes are themselves, others come from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
