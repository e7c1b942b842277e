"""In which order rows come: shuffled anew every epoch, in streams, and from several sources by weight."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from grain.experimental import index_shuffle

_FEW = 512  # rows, of which an epoch's order is drawn at once: a place of it alone would take 0.1 ms and more


class Order(Iterator[int]):
    """An endless iterator over the numbers of rows, whose position is small.

    Stream s of n takes the positions s, s + n, s + 2n, ... of every source's order, so that all streams together see
    every row of a source once in each of its epochs.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, stream: int = 0, streams: int = 1):
        """Describes the order of one stream.

        Args:
          sizes: rows of each source; row k of source s has the number sum(sizes[:s]) + k.
          weights: what share of the rows a source gives; they need not sum to 1. Each source is repeated as needed.
          seed: of the shuffling.
          stream: which stream this is.
          streams: how many there are.
        """
        if len(sizes) != len(weights) or min(sizes) < 1 or min(weights) <= 0:
            raise ValueError(f"sizes={sizes}, weights={weights}: must be as many, and positive")
        self._sizes, self._weights, self._stream, self._streams = tuple(sizes), tuple(weights), stream, streams
        self._starts = [sum(sizes[:source]) for source in range(len(sizes))]
        self._seeds = [
            int(np.random.SeedSequence((seed, 1, source)).generate_state(1)[0]) for source in range(len(sizes))
        ]
        self._taken = [0] * len(sizes)

    def __next__(self) -> int:
        source = 0
        if len(self._taken) > 1:
            # Sainte-Lague's method: after any number of rows, each source is within one row or so of its share.
            source = min(range(len(self._taken)), key=lambda s: (self._taken[s] + 0.5) / self._weights[s])
        position = self._stream + self._streams * self._taken[source]
        self._taken[source] += 1
        return self._starts[source] + _shuffled(position, self._sizes[source], self._seeds[source])

    def get_state(self) -> dict[str, Any]:
        """Returns how many rows of each source have come, as JSON can hold it."""
        return {"taken": list(self._taken)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called on an order of the same settings."""
        self._taken = list(state["taken"])


def _shuffled(position: int, size: int, seed: int) -> int:
    """Returns the row at a position of the endless order: that of `grain.MapDataset`, unless there are few rows."""
    epoch, place = divmod(position, size)
    seed = (seed + epoch) % 2**32
    if size <= _FEW:
        return int(_permutation(size, seed)[place])
    return index_shuffle(place, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)
