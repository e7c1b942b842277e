"""How a metric is read: what it is called, in which unit, with how many digits, and which direction is better.

A metric's name says all of it: `finetune.accuracy` is a share, `validation/loss` falls, `wall_seconds` are seconds.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lepton_jax.config import LOWER_IS_BETTER

# Ends of the names of metrics that are shares of something.
_SHARES = ("accuracy", "agreement", "f1", "precision", "recall", "exact_match", "utilisation")
# Ends of the names of what is paid, besides LOWER_IS_BETTER.
_COSTS = ("error", "seconds", "parameters", "bytes", "tokens", "steps", "flops", "examples", "max_examples", "size")


def last_name(metric: str) -> str:
    """Returns "loss" of "validation/loss" and "accuracy" of "finetune.accuracy"."""
    return re.split(r"[./]", metric)[-1]


def words(name: str) -> str:
    """Returns a metric's name for reading: "validation/f1_macro" gives "validation f1 macro"."""
    return name.replace("/", " ").replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Returns whether a metric is an error or a cost; `validation_loss` is, as `loss` is."""
    name = last_name(metric)
    return any(name == end or name.endswith(f"_{end}") for end in (*LOWER_IS_BETTER, *_COSTS))


def is_share(metric: str) -> bool:
    """Returns whether a metric is a share, which is read in percent."""
    name = last_name(metric)
    return name.startswith("share_of") or name.endswith(_SHARES)


def unit(metric: str) -> str:
    """Returns the unit that follows a metric's number: "%", "x" (times), " s" or nothing."""
    name = last_name(metric)
    if is_share(metric):
        return "%"
    if name.endswith(("ratio", "speedup")):
        return "x"
    return " s" if name.endswith("seconds") else ""


def decimals(metric: str, value: float) -> int:
    """Returns how many digits after the point a metric's value has, as it is read."""
    if is_share(metric) or unit(metric) == " s":
        return 1
    if unit(metric) == "x":
        return 2
    if last_name(metric).endswith("per_second") or value == 0 or not math.isfinite(value) or float(value).is_integer():
        return 0
    return max(3 - math.floor(math.log10(abs(value))), 0)


def shown(name: str, value: Any) -> str:
    """Returns a metric's value as a person reads it; the metric's name tells what it is."""
    name = re.sub("_(a|b|difference)$", "", name)  # of a comparison
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if is_share(name):
        return f"{100 * value:.1f}%"
    if unit(name) or last_name(name).endswith("per_second"):
        return f"{value:,.{decimals(name, value)}f}{unit(name)}"
    whole = isinstance(value, int) or (value.is_integer() and abs(value) >= 1e4)  # the mean of counts is a float
    return f"{int(value):,}" if whole else f"{value:.4g}"


def spread(metric: str, mean: float, deviation: float = math.nan) -> tuple[str, str]:
    """Returns (mean, standard deviation) without their unit, with as many digits as the mean has, and more where the
    deviation would else be 0; "" for a deviation that is not defined, "-" for a mean that is not."""
    if not math.isfinite(mean):
        return "-", ""
    factor = 100 if is_share(metric) else 1
    mean, deviation = factor * mean, factor * deviation
    if deviation < 1e-9 * abs(mean):  # of equal values, which their mean rounds
        deviation = 0.0
    digits = decimals(metric, mean)
    if math.isfinite(deviation) and deviation > 0:
        digits = max(digits, min(-math.floor(math.log10(deviation)), 6))
    if abs(mean) < 1e-4 and mean:
        return f"{mean:.3g}", f"{deviation:.2g}" if math.isfinite(deviation) else ""
    return f"{mean:,.{digits}f}", f"{deviation:,.{digits}f}" if math.isfinite(deviation) else ""


def headings(metrics: Sequence[str]) -> dict[str, str]:
    """Returns what tables and axes call metrics, with the unit of shares: "accuracy, %"; where two have the same last
    name, with the names of their groups too."""
    last = Counter(map(last_name, metrics))
    names = {metric: last_name(metric) if last[last_name(metric)] == 1 else metric for metric in dict.fromkeys(metrics)}
    return {
        metric: words(name.replace(".", " ")) + (", %" if is_share(metric) else "") for metric, name in names.items()
    }
