"""Bucketing: which rows share a batch so that they have about the same length, and the lengths of such batches.

Little is padding then, and there is one compilation a length. As in `packing`, only lengths and numbers of rows are
handled here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BUCKETS = 4
_WINDOW = 64  # batches whose rows are sorted together: the more, the less padding, and the less random the batches


def bucket_lengths(max_length: int, unit: int = 8) -> tuple[int, ...]:
    """Returns the lengths that batches have: a quarter, half, three quarters of `max_length`, rounded up to multiples
    of `unit`, and itself."""
    quarters = {-(-max_length * part // (_BUCKETS * unit)) * unit for part in range(1, _BUCKETS)}
    return (*sorted(length for length in quarters if length < max_length), max_length)


def bucket_of(buckets: Sequence[int], length: int) -> int:
    """Returns the first of increasing lengths that is at least `length`."""
    return next(bucket for bucket in buckets if bucket >= length)


class Sorter:
    """Rows of 64 batches at a time (of fewer data, of one epoch), sorted by length and cut into batches, which come in
    random order."""

    def __init__(self, size: int, rows: int, seed: int):
        """Starts with no row; `size` is that of a batch, `rows` how many there are in all."""
        self._batches, self._size, self._seed = min(_WINDOW, rows // size), size, seed
        self._window = 0
        self._waiting: list[tuple[int, int]] = []  # (length, row)

    def add(self, row: int, length: int) -> list[list[int]]:
        """Takes the next row, and returns those of several batches once there are enough of them."""
        self._waiting.append((length, row))
        if len(self._waiting) < self._batches * self._size:
            return []
        # Of equal lengths in the order in which they came, which is random.
        rows = [row for _, row in sorted(self._waiting, key=lambda pair: pair[0])]
        order = np.random.default_rng((self._seed, self._window)).permutation(self._batches).tolist()
        self._waiting, self._window = [], self._window + 1
        return [[row] for batch in order for row in rows[batch * self._size : (batch + 1) * self._size]]

    def get_state(self) -> dict[str, Any]:
        return {"window": self._window, "waiting": [list(pair) for pair in self._waiting]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._window, self._waiting = state["window"], [(length, row) for length, row in state["waiting"]]
