"""How special tokens stand around texts, and which tokens of a row that is too long are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers.protocol import Encoded, Truncation

Cut = tuple[np.ndarray, np.ndarray]  # of one text: ids int32 [n], offsets int32 [n, 2]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A run of a row that has one token type: all tokens of a text, or special tokens."""

    sequence: int  # which text: 0 or 1; -1 for special tokens
    type_id: int = 0
    ids: tuple[int, ...] = ()  # the special tokens


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of texts and special tokens in a row of one text and in a row of two."""

    single: tuple[Slot, ...]
    pair: tuple[Slot, ...]

    def with_specials(self, ids: np.ndarray) -> np.ndarray:
        """Returns the int32 ids of one text with the special tokens around them."""
        return np.concatenate([_specials(slot.ids)[0] if slot.sequence < 0 else ids for slot in self.single])

    def rows(
        self, first: Sequence[Cut], second: Sequence[Cut] | None, max_length: int | None, truncation: Truncation
    ) -> list[Encoded]:
        """Returns one row a text or pair; see `Tokenizer.rows`."""
        if second is not None and len(first) != len(second):
            raise ValueError(f"{len(first)} texts and {len(second)} second texts: a pair needs both")
        slots = self.single if second is None else self.pair
        sources = [first] if second is None else [first, second]
        pairs: Iterable[tuple[Cut, ...]] = zip(*sources, strict=True)
        if max_length is None:
            return [_row(slots, texts) for texts in pairs]
        room = max_length - sum(len(slot.ids) for slot in slots)
        if room < 0:
            raise UserError(f"max_length={max_length}: the special tokens alone are {max_length - room}")
        found = []
        for number, texts in enumerate(pairs):
            lengths = kept([len(ids) for ids, _ in texts], room, truncation, number)
            shorter = tuple((ids[:n], offsets[:n]) for (ids, offsets), n in zip(texts, lengths, strict=True))
            found.append(_row(slots, shorter))
        return found


def kept(lengths: Sequence[int], room: int, truncation: Truncation, row: int = 0) -> list[int]:
    """Returns how many tokens of each text stay where all of them may have `room`.

    Args:
      lengths: of one text or of two.
      room: tokens without the special ones.
      truncation: see `Tokenizer.rows`.
      row: its number, for the message.

    Raises:
      UserError: the text that is to be cut is not long enough for it, or none may be cut.
    """
    excess = sum(lengths) - room
    if excess <= 0:
        return list(lengths)
    if truncation == "longest_first":
        if len(lengths) == 1:
            return [room]
        shorter, longer = sorted(lengths)
        if shorter <= room // 2:
            longer = room - shorter
        else:
            shorter, longer = room // 2, room - room // 2
        return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]
    which = {"only_first": 0, "only_second": 1, "none": None}.get(truncation, -1)
    if which == -1:
        raise UserError(f"truncation={truncation!r}: must be longest_first, only_first, only_second or none")
    if which is None:
        raise UserError(f"texts[{row}]: {excess} tokens too long for max_length, and truncation='none' cuts nothing")
    if which >= len(lengths) or lengths[which] <= excess:
        has = f"has {lengths[which]} tokens" if which < len(lengths) else "is not there"
        raise UserError(f"texts[{row}]: {excess} tokens too long, and truncation={truncation!r} cuts a text that {has}")
    return [length - excess * (index == which) for index, length in enumerate(lengths)]


def _row(slots: Sequence[Slot], texts: Sequence[Cut]) -> Encoded:
    parts = [texts[slot.sequence] if slot.sequence >= 0 else _specials(slot.ids) for slot in slots]
    lengths = [len(ids) for ids, _ in parts]
    return Encoded(
        np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in parts)]),
        np.repeat(np.array([slot.type_id for slot in slots], np.int32), lengths),
        np.concatenate([np.zeros((0, 2), np.int32), *(offsets for _, offsets in parts)]),
        np.repeat(np.array([slot.sequence for slot in slots], np.int8), lengths),
    )


def _specials(ids: tuple[int, ...]) -> Cut:
    return np.array(ids, np.int32), np.zeros((len(ids), 2), np.int32)
