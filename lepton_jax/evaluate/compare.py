"""Is one model better than another? Both on the same test examples, so that chance has less to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.intervals import bounds, drawn, p_value
from lepton_jax.evaluate.lines import Kind, figures

Line = dict[str, Any]


def compare(
    kind: Kind,
    runs: Sequence[tuple[Sequence[Line], Sequence[Line]]],
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the metrics of two models, their difference (the second minus the first), and how sure it is.

    Each metric of `lines.figures` has `a`, `b`, `difference`, its 95% `interval` and its `p_value` by a paired
    bootstrap, which draws examples and, where there are several, pairs of runs; a metric that one of them does not
    define is left out. Classes have also McNemar's exact test (McNemar 1947) of each pair: how many examples only the
    one, only the other gets right, and the p-value of such a split or a worse one.

    Args:
      kind: of the labels.
      runs: pairs of predictions, such as those of the same seed; the lines of predictions.jsonl, in any order.
      only: the metrics; empty: all.

    Raises:
      UserError: the predictions are not of the same examples with the same labels.
    """
    reference = _ordered(runs[0][0], "a")
    aligned = [(_align(reference, a, "a"), _align(reference, b, "b")) for a, b in runs]
    sides = [(figures(kind, a), figures(kind, b)) for a, b in aligned]
    everything = np.arange(len(reference))
    summary: dict[str, Any] = {"examples": len(everything)}
    for name in sides[0][0]:
        if only and name not in only:
            continue
        a, b = (float(np.mean([pair[side][name](everything) for pair in sides])) for side in (0, 1))
        if not np.isfinite([a, b]).all():
            continue
        differences = [
            lambda chosen, one=one[name], other=other[name]: other(chosen) - one(chosen) for one, other in sides
        ]
        found = drawn(differences, len(everything))
        both = {"interval": list(bounds(found)), "p_value": p_value(found)}
        summary[name] = {"a": a, "b": b, "difference": b - a} | both
    if kind == "classes":
        summary["mcnemar"] = [_mcnemar(*pair) for pair in aligned]
    return summary


def _ordered(lines: Sequence[Line], name: str) -> list[Line]:
    """Returns lines in the order of their texts; of a text that is there more than once, of its labels."""
    if not lines:
        raise UserError(f"config.{name}: its predictions.jsonl holds no example")
    for line in lines:
        if lacking := [key for key in ("text", "label", "prediction") if key not in line]:
            raise UserError(f"config.{name}: a line of its predictions.jsonl has no {lacking[0]!r}: {str(line)[:60]}")
    return sorted(lines, key=lambda line: (*_texts(line), repr(line["label"])))


def _texts(line: Line) -> tuple[str, str]:
    return line["text"], line.get("pair", "")


def _align(reference: Sequence[Line], lines: Sequence[Line], name: str) -> list[Line]:
    """Returns the lines of one run in the order of the reference, of which it must have every example and no other."""
    ordered = _ordered(lines, name)
    wanted, found = (Counter(map(_texts, side)) for side in (reference, ordered))
    other = "b" if name == "a" else "a"
    for config, missing, whole in ((name, wanted - found, wanted), (other, found - wanted, found)):
        if missing:
            first = next(iter(missing))[0][:60]
            raise UserError(f"config.{config}: lacks {missing.total()} of the {whole.total()} test examples of the "
                            f"other run, such as {first!r}; compare runs with the same test data")  # fmt: skip
    differing = [pair for pair in zip(reference, ordered, strict=True) if pair[0]["label"] != pair[1]["label"]]
    if differing:
        there, here = differing[0]
        raise UserError(f"config.{name}: {len(differing)} of {len(ordered)} labels are not those of the other run, "
                        f"such as {here['label']!r} of {here['text'][:60]!r}, there {there['label']!r}; compare runs "
                        f"with the same test data")  # fmt: skip
    return ordered


def _mcnemar(first: Sequence[Line], second: Sequence[Line]) -> dict[str, Any]:
    from scipy import stats

    right = np.array([[line["label"] == line["prediction"] for line in lines] for lines in (first, second)])
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": p_value}
