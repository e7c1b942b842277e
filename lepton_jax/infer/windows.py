"""Texts that are longer than a model's rows: rows that overlap, and for each word the one that shows most around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lepton_jax.data.spans import Word
from lepton_jax.data.tokenizers import Encoded


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a row, with all of its special tokens."""

    ids: np.ndarray  # int32 [n]
    firsts: np.ndarray  # int [words]: the first tokens, in the whole row, of the words that this window decides about
    places: np.ndarray  # int [words]: where the same tokens are in the window


def cut(encoded: Encoded, words: Sequence[Word], max_length: int) -> list[Window]:
    """Returns the windows of a row, each of at most `max_length` tokens; one, the row itself, where it is short enough.

    A window begins and ends between words, and the next one begins in the middle of it. Each word is decided by the
    window in which it is farther from both ends. A word that is longer than a window loses its end, and a row without
    words has no window.

    Args:
      encoded: the whole row of one text, not truncated.
      words: of `data.spans.words_of`.
      max_length: of a window, special tokens included.
    """
    firsts = np.fromiter((word.first for word in words), np.int64, len(words))
    if not words or len(encoded) <= max_length:
        return [Window(encoded.ids, firsts, firsts)] if words else []
    text = np.flatnonzero(encoded.sequence == 0)
    begin, end = int(text[0]), int(text[-1]) + 1
    head, tail = encoded.ids[:begin], encoded.ids[end:]
    spans = _spans(np.unique([begin, *firsts]), end, max_length - len(head) - len(tail))

    deepest, owner = np.full(len(firsts), -1), np.zeros(len(firsts), np.int64)
    own = [slice(*np.searchsorted(firsts, span)) for span in spans]
    for number, ((start, stop), words_here) in enumerate(zip(spans, own, strict=True)):
        depth = np.minimum(firsts[words_here] - start, stop - 1 - firsts[words_here])
        deeper = depth > deepest[words_here]
        deepest[words_here] = np.where(deeper, depth, deepest[words_here])
        owner[words_here] = np.where(deeper, number, owner[words_here])

    windows = []
    for number, ((start, stop), words_here) in enumerate(zip(spans, own, strict=True)):
        chosen = firsts[words_here][owner[words_here] == number]
        ids = np.concatenate([head, encoded.ids[start:stop], tail])
        windows.append(Window(ids, chosen, chosen - start + len(head)))
    return windows


def join(windows: Sequence[Window], outputs: Sequence[np.ndarray], length: int, num_outputs: int) -> np.ndarray:
    """Returns float32 [length, num_outputs]: the outputs of the words' first tokens in the whole row, elsewhere 0.

    Args:
      windows: of the row.
      outputs: of each window, [T, num_outputs] with T not below its length.
      length: of the row.
      num_outputs: of a token.
    """
    whole = np.zeros((length, num_outputs), np.float32)
    for window, output in zip(windows, outputs, strict=True):
        whole[window.firsts] = output[window.places]
    return whole


def _spans(starts: np.ndarray, end: int, room: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of windows of at most `room` tokens over units that begin at `starts` and go on to `end`.

    Every unit has its first token in a window.
    """
    bounds, unit, spans = np.append(starts, end), 0, []
    while True:
        start = int(bounds[unit])
        following = max(int(np.searchsorted(bounds, start + room, "right")) - 1, unit + 1)
        spans.append((start, min(int(bounds[following]), start + room)))
        if following == len(starts):
            return spans
        middle = int(np.searchsorted(bounds, start + room // 2))
        unit = min(max(middle, unit + 1), following)
