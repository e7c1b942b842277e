"""When two texts count as the same text, and how a text falls into a split whatever else is in the data."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping


def normalise(text: str) -> str:
    """Returns the form in which texts are compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fraction(text: str, key: str) -> float:
    """Returns a number in [0, 1), uniform over texts, that depends on the key and the normalised text alone.

    Two choices among the same texts need two keys (of at most 64 bytes), or they are one choice.
    """
    digest = hashlib.blake2b(normalise(text).encode(), digest_size=8, key=key.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


def split_of(text: str, shares: Mapping[str, float], key: str) -> str:
    """Returns the split that a text belongs to; each split gets about its share of many texts.

    Equal texts fall into one split, whatever the order of the rows and whatever other rows there are,
    so a split made this way cannot leak.
    """
    point, upper = fraction(text, key), 0.0
    for name, share in shares.items():
        upper += share
        if point < upper:
            return name
    return name
