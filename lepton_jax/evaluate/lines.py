"""Figures of predictions.jsonl over any choice of its examples, fast enough to be drawn a thousand times.

A line has a `label` and a `prediction`: names (classes), lists of names (sets), numbers, or lists of [start, end, type]
(spans), as `kind` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["classes", "sets", "numbers", "spans"]
# What the labels of each task are.
KINDS: dict[str, Kind] = {
    "classification": "classes", "multi_label": "sets", "regression": "numbers", "token_classification": "spans"
}  # fmt: skip

Figure = Callable[[np.ndarray], float]  # numbers of examples, int [m], each as often as it counts -> a metric over them


def figures(kind: Kind, lines: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Returns the main metrics of a kind: of classes `accuracy`, `macro_f1`; of sets `micro_f1`, `exact_match`; of
    numbers `mean_squared_error`, `spearman`; of spans `f1`."""
    pairs = [(line["label"], line["prediction"]) for line in lines]
    if kind == "classes":
        return _of_classes(pairs)
    if kind == "numbers":
        return _of_numbers(np.asarray(pairs, np.float64).reshape(-1, 2))
    found = [({_frozen(a) for a in wanted}, {_frozen(b) for b in said}) for wanted, said in pairs]
    counts = np.array([(len(a & b), len(a) + len(b)) for a, b in found], np.float64).reshape(-1, 2)
    same = np.array([a == b for a, b in found])

    def f1(chosen: np.ndarray) -> float:
        right, all_of_them = counts[chosen].sum(0)
        return float(2 * right / all_of_them) if all_of_them else 0.0

    return {"f1": f1} if kind == "spans" else {"micro_f1": f1, "exact_match": lambda chosen: float(same[chosen].mean())}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _of_classes(pairs: Sequence[tuple[str, str]]) -> dict[str, Figure]:
    # The classes are those of all examples, so that a draw without one of them counts it with an F1 of 0.
    names = {name: number for number, name in enumerate(sorted({name for pair in pairs for name in pair}))}
    codes = np.array([[names[a], names[b]] for a, b in pairs], np.int64).reshape(-1, 2)

    def macro_f1(chosen: np.ndarray) -> float:
        wanted, said = codes[chosen].T
        right = np.bincount(wanted[wanted == said], minlength=len(names))
        total = np.bincount(wanted, minlength=len(names)) + np.bincount(said, minlength=len(names))
        return float(np.mean(2 * right / np.maximum(total, 1)))

    return {"accuracy": lambda chosen: float((codes[chosen, 0] == codes[chosen, 1]).mean()), "macro_f1": macro_f1}


def _of_numbers(pairs: np.ndarray) -> dict[str, Figure]:
    from scipy.stats import rankdata

    errors = np.square(pairs[:, 0] - pairs[:, 1])

    def spearman(chosen: np.ndarray) -> float:
        ranks = rankdata(pairs[chosen], axis=0)
        ranks = ranks - ranks.mean(0)
        size = float(np.sqrt(np.prod(np.square(ranks).sum(0))))
        return float(ranks[:, 0] @ ranks[:, 1] / size) if size else float("nan")

    return {"mean_squared_error": lambda chosen: float(errors[chosen].mean()), "spearman": spearman}
