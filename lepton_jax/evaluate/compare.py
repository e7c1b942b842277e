"""Is one model better than another? Both on the same test examples, so that chance has less to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.intervals import interval
from lepton_jax.evaluate.lines import figures

Line = dict[str, Any]


def compare(
    kind: Literal["classes", "sets", "numbers", "spans"], runs: Sequence[tuple[Sequence[Line], Sequence[Line]]]
) -> dict[str, Any]:
    """Returns the metrics of two models, their difference (the second minus the first), and how sure it is.

    Each metric of `lines.figures` has `a`, `b`, `difference` and its 95% `interval` by a paired bootstrap, which draws
    examples and, where there are several, pairs of runs. Classes have also McNemar's exact test (McNemar 1947) of each
    pair: how many examples only the one, only the other gets right, and the p-value of such a split or a worse one.

    Args:
      kind: of the labels.
      runs: pairs of predictions, such as those of the same seed; the lines of predictions.jsonl, in any order.

    Raises:
      UserError: the predictions are not of the same examples with the same labels.
    """
    aligned = [_align(*pair) for pair in runs]
    drawn = [tuple(figures(kind, side) for side in pair) for pair in aligned]
    everything = np.arange(len(aligned[0][0]))
    summary: dict[str, Any] = {"examples": len(everything)}
    for name in drawn[0][0]:
        a, b = (float(np.mean([pair[side][name](everything) for pair in drawn])) for side in (0, 1))
        differences = [
            lambda chosen, one=one[name], other=other[name]: other(chosen) - one(chosen) for one, other in drawn
        ]
        bounds = interval(differences, len(everything))
        summary[name] = {"a": a, "b": b, "difference": b - a, "interval": list(bounds)}
    if kind == "classes":
        summary["mcnemar"] = [_mcnemar(*pair) for pair in aligned]
    return summary


def _align(first: Sequence[Line], second: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Returns the lines of both in the order of the first."""

    def by_text(lines: Sequence[Line]) -> dict[tuple[str, str], Line]:
        return {(line["text"], line.get("pair", "")): line for line in lines}

    known, others = by_text(first), by_text(second)
    for here, there, name in ((known, others, "b"), (others, known, "a")):
        missing = [key for key in here if key not in there]
        if missing:
            raise UserError(f"config.{name}: lacks {len(missing)} of the {len(here)} test examples of the other run, "
                            f"such as {missing[0][0][:60]!r}; compare runs with the same test data")  # fmt: skip
    for key, line in known.items():
        if line["label"] != others[key]["label"]:
            raise UserError(f"config.b: the label of {key[0][:60]!r} is {others[key]['label']!r}, and in the other run "
                            f"{line['label']!r}; compare runs with the same test data")  # fmt: skip
    return list(known.values()), [others[key] for key in known]


def _mcnemar(first: Sequence[Line], second: Sequence[Line]) -> dict[str, Any]:
    from scipy import stats

    right = np.array([[line["label"] == line["prediction"] for line in lines] for lines in (first, second)])
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": p_value}
