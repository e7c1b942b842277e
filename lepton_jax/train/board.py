"""What shows a run's metrics while it trains, beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Board(Protocol):
    """Gets every metric after metrics.jsonl has it. Where a method cannot write, it raises OSError."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Adds metrics of a step, by names such as "train/loss"."""
        ...

    def forget(self, step: int) -> None:
        """Says that what there is of steps after this one is void: they come again."""
        ...

    def flush(self) -> None:
        """Returns when all that was added is where a killed run does not lose it."""
        ...

    def close(self, failed: bool = False) -> None:
        """Ends it; `failed` says that the run ended by an error."""
        ...
