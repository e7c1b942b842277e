"""The shapes of a predictor's programs: a few lengths and a few numbers of rows, which all batches are padded to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.bucketing import bucket_of

_MOST = 8  # lengths: each is a compilation or more
_UNIT = 8  # tokens that chosen lengths are multiples of; of long models more, so that there are 64 to choose from
_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class Buckets:
    lengths: tuple[int, ...]  # tokens, increasing; the last one is the model's
    counts: tuple[int, ...]  # rows, increasing; each a multiple of `devices`
    tokens: int = 0  # of a batch, at most, and on each device; 0: any number
    devices: int = 1

    def length(self, tokens: int) -> int:
        """Returns the length that a batch gets whose longest row has so many tokens."""
        return bucket_of(self.lengths, tokens)

    def rows(self, length: int) -> tuple[int, ...]:
        """Returns the numbers of rows, increasing, that batches of a length have."""
        most = self.counts[-1]
        if self.tokens:
            most = min(most, self.devices * max(self.tokens // length, 1))
        return (*(count for count in self.counts if count < most), most)

    def count(self, rows: int, length: int) -> int:
        """Returns the rows that a batch of so many gets."""
        own = self.rows(length)
        return bucket_of(own if rows <= own[-1] else self.counts, rows)

    def batches(self, lengths: np.ndarray) -> list[list[int]]:
        """Returns the numbers of rows of these lengths, batch by batch: sorted by length, so that little is padding.

        The longest come first. A batch ends where the next bucket begins if more than half of it is full: to compute
        the rest of it with the length of the longer rows would cost more than to leave it empty.
        """
        order = np.argsort(-lengths, kind="stable")
        found = np.searchsorted(self.lengths, lengths[order])  # the bucket of each
        start, batches = 0, []
        while start < len(order):
            most = self.rows(self.lengths[found[start]])[-1]
            stop = min(start + most, len(order))
            own = int(np.searchsorted(-found, -found[start], side="right"))  # where the next bucket begins
            if own < stop and 2 * (own - start) > most:
                stop = own
            batches.append(order[start:stop].tolist())
            start = stop
        return batches


def make(
    lengths: Sequence[int],
    counts: Sequence[int],
    max_length: int,
    seen: np.ndarray | None = None,
    devices: int = 1,
    tokens: int = 0,
) -> Buckets:
    """Returns the buckets of a predictor.

    Args:
      lengths: tokens, increasing; the model's own comes last in any case. (): chosen by `seen`, else the powers of two
        from 16 on.
      counts: rows, increasing; each is rounded up to a multiple of `devices`.
      max_length: of the model.
      seen: int [n], how many tokens rows have had, see `choose`.
      devices: how many the rows are spread over.
      tokens: of a batch, at most, and on each device; 0: any number.

    Raises:
      UserError: a length is beyond the model's.
    """
    if lengths and lengths[-1] > max_length:
        raise UserError(f"infer.lengths={tuple(lengths)!r}: the model reads at most {max_length} tokens")
    if not lengths:
        powers = [1 << power for power in range(_SHORTEST.bit_length() - 1, max_length.bit_length())]
        lengths = powers if seen is None else choose(seen, max_length)
    short = [length for length in lengths if length < max_length]
    rounded = sorted({-(-count // devices) * devices for count in counts})
    return Buckets((*short, max_length), tuple(rounded), tokens, devices)


def choose(seen: np.ndarray, max_length: int) -> tuple[int, ...]:
    """Returns at most eight lengths, `max_length` the last of them, with the least tokens in all if each row is padded
    to the next one.

    Found by dynamic programming over multiples of eight, or of a larger unit.

    Args:
      seen: int [n], the tokens of rows.
      max_length: of a row.
    """
    unit = _UNIT * -(-max_length // (64 * _UNIT))
    ends = np.unique([*range(unit, max_length, unit), max_length])
    counts = np.bincount(np.searchsorted(ends, np.minimum(seen, max_length)), minlength=len(ends))
    total = np.concatenate([[0], np.cumsum(counts)])  # rows that the first n ends hold
    # cost[n]: the least tokens of the rows of the first n ends, whose last bucket is ends[n - 1], and its buckets.
    best: list[Any] = [(0.0, ())] + [(math.inf, ())] * len(ends)
    for _ in range(_MOST):
        longer = list(best)
        for stop in range(1, len(ends) + 1):
            for before in range(stop):
                cost = best[before][0] + float(ends[stop - 1] * (total[stop] - total[before]))
                if cost < longer[stop][0]:
                    longer[stop] = (cost, (*best[before][1], int(ends[stop - 1])))
        best = longer
    return best[-1][1]
