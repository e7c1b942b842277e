"""Results by slices of the test set: where a model is good, and where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_MOST = 60  # slices of one kind; those with the most examples are kept


def by_slice(
    measure: Callable[[list[int]], dict[str, float]],
    *,
    lengths: Sequence[int],
    labels: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Returns {"slice", "value", "examples", metrics ...} of each slice, by length, label and source.

    Args:
      measure: gives the metrics of the examples of these numbers.
      lengths: characters of each text, cut into quarters of the examples.
      labels: of each example; None: there is no single one.
      sources: where each example is from; None or all the same: no slices of it.
    """
    rows = []
    for kind, values in (("length", _quarters(lengths)), ("label", labels), ("source", sources)):
        if values is None or len(set(values)) < 2:
            continue
        groups: dict[str, list[int]] = {}
        for number, value in enumerate(values):
            groups.setdefault(value, []).append(number)
        largest = sorted(groups, key=lambda value: -len(groups[value]))[:_MOST]
        for value in largest if kind == "label" else sorted(largest, key=_first_number):
            rows.append({"slice": kind, "value": value, "examples": len(groups[value]), **measure(groups[value])})
    return rows


def _quarters(lengths: Sequence[int]) -> list[str]:
    """Returns the interval of characters that each length falls into, such as "12-30"."""
    edges = np.quantile(lengths, [0.25, 0.5, 0.75], method="lower") if len(lengths) else np.zeros(3)
    places = np.searchsorted(edges, lengths, side="left")
    groups = {place: [length for length, own in zip(lengths, places, strict=True) if own == place] for place in places}
    names = {place: f"{min(group)}-{max(group)} characters" for place, group in groups.items()}
    return [names[place] for place in places]


def _first_number(value: str) -> tuple[int, str]:
    head = value.partition("-")[0]
    return (int(head) if head.isdecimal() else 0), value
