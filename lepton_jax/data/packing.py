"""Packing: which documents share a row, by best fit with a bounded number of open rows.

Only lengths and numbers of documents are handled here, so a position is small and exact, and tokens are read once a
row is complete. That packed documents do not see each other is the business of `batches` and of attention.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

OPEN_ROWS = 256  # more leave less padding: of news articles in rows of 512 tokens 0.5% with 64, 0.3% with 256
_PATIENCE = 16  # times the open rows: documents that may come while a row stays open


class Packer:
    """Best fit (Johnson 1973, "Near-optimal bin packing algorithms"), online.

    A document goes into the open row with the least room that it fits into, else into a new row. A row is complete
    when it is full; when a new one needs its place and it is the fullest, of several the oldest; and at the latest
    16 * `open_rows` documents after its first one. So each document comes out exactly once, and none waits for longer.
    """

    def __init__(self, length: int, open_rows: int = OPEN_ROWS):
        """Starts with no open row; `length` is that of a row, `open_rows` how many there may be."""
        self.open_rows = open_rows
        self._length, self._patience = length, _PATIENCE * open_rows
        self._clock = 0  # documents so far
        self._by_room: list[tuple[int, int]] = []  # (room, birth) of each open row, sorted
        self._rows: dict[int, list[int]] = {}  # birth -> documents, oldest first
        self._rooms: dict[int, int] = {}  # birth -> room

    def add(self, document: int, size: int) -> list[list[int]]:
        """Takes the next document, 1 <= size <= length, and returns the rows (documents in order) that are complete."""
        if not 1 <= size <= self._length:
            raise ValueError(f"a document of {size} tokens does not fit into a row of {self._length}")
        complete = []
        place = bisect.bisect_left(self._by_room, (size, -1))
        if place < len(self._by_room):
            room, birth = self._by_room.pop(place)
            self._rows[birth].append(document)
        else:
            room, birth = self._length, self._clock
            if size < self._length and len(self._rows) == self.open_rows:
                complete.append(self._close(self._by_room[0][1]))
            self._rows[birth] = [document]
        self._rooms[birth] = room - size
        bisect.insort(self._by_room, (room - size, birth))
        if room == size:
            complete.append(self._close(birth))
        self._clock += 1
        oldest = next(iter(self._rows), self._clock)
        if self._clock - oldest > self._patience:
            complete.append(self._close(oldest))
        return complete

    def flush(self) -> list[list[int]]:
        """Completes the rows that are open, oldest first, and returns them."""
        return [self._close(birth) for birth in list(self._rows)]

    def get_state(self) -> dict[str, Any]:
        """Returns the open rows, as JSON can hold them."""
        rows = [[birth, self._rooms[birth], list(documents)] for birth, documents in self._rows.items()]
        return {"clock": self._clock, "rows": rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called on a packer of the same settings."""
        self._clock = state["clock"]
        self._rows = {birth: list(documents) for birth, _, documents in state["rows"]}
        self._rooms = {birth: room for birth, room, _ in state["rows"]}
        self._by_room = sorted((room, birth) for birth, room in self._rooms.items())

    def _close(self, birth: int) -> list[int]:
        del self._by_room[bisect.bisect_left(self._by_room, (self._rooms.pop(birth), birth))]
        return self._rows.pop(birth)
