"""Figures as descriptions: what an experiment lists in FIGURES, and what its plan.json keeps of them.

    FIGURES = (Curves("validation/loss"), Bars("finetune.accuracy"),
               Lines(x="data.max_examples", y="finetune.accuracy", by="model.init", log_x=True))

A name is that of a metric in summary.json or of a field of the config; `a*b` is the product of two. `plots` draws them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from lepton_jax.core.errors import UserError, nearest
from lepton_jax.core.fields import build


@dataclasses.dataclass(frozen=True)
class Curves:
    """A metric over the steps of training, a line a group: the mean, in a band of one standard deviation over seeds."""

    metric: str = "validation/loss"  # of metrics.jsonl
    part: str = ""  # of a quickstart: "pretrain", "finetune" or "from_scratch"; empty: "finetune"


@dataclasses.dataclass(frozen=True)
class Bars:
    """A metric, a bar a group: the mean, its standard deviation over seeds, and each seed as a point."""

    metric: str


@dataclasses.dataclass(frozen=True)
class Lines:
    """A metric over a field or another metric, a line for each value of a field, in a band over seeds."""

    x: str  # of `data.max_examples`, 0 is as many as there were
    y: str
    by: str = ""  # a field; empty: one line
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Pareto:
    """Two metrics, a point a group, with deviations over seeds, and the front of those that no other beats in both."""

    x: str
    y: str


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A loss over tokens (or parameters, where one size was trained), a point a run, with the law that fits them."""

    y: str
    parameters: str = ""  # such as "pretrain.parameters"; empty: all models have one size
    tokens: str = ""  # such as "train.steps*train.batch_size*data.max_length"; empty: all saw as many


Figure = Curves | Bars | Lines | Pareto | Scaling
KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Curves, Bars, Lines, Pareto, Scaling)}


def to_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Returns descriptions as what JSON holds: {"kind": "curves", "metric": ...}.

    Raises:
      UserError: one is no figure.
    """
    found = []
    for place, figure in enumerate(figures):
        kind = type(figure).__name__.lower()
        if KINDS.get(kind) is not type(figure):
            known = ", ".join(each.__name__ for each in KINDS.values())
            raise UserError(f"FIGURES[{place}]={figure!r}: must be one of {known}, see lepton_jax/results/figures.py")
        found.append({"kind": kind, **dataclasses.asdict(figure)})
    return found


def from_json(trees: Any) -> list[Figure]:
    """Returns the descriptions that `to_json` has written.

    Raises:
      UserError: an unknown kind, or a field that is unknown or of a wrong type.
    """
    found = []
    for place, tree in enumerate(trees if isinstance(trees, list) else [trees]):
        where = f"figures[{place}]"
        if not isinstance(tree, dict) or not isinstance(tree.get("kind"), str):
            raise UserError(f"{where}={tree!r}: must be an object with a kind")
        if tree["kind"] not in KINDS:
            raise UserError(f"{where}.kind={tree['kind']!r}: unknown figure; {nearest(tree['kind'], list(KINDS))}")
        fields = {name: value for name, value in tree.items() if name != "kind"}
        kind = KINDS[tree["kind"]]
        needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
        if lacking := [name for name in needed if name not in fields]:
            raise UserError(f"{where}: a figure {tree['kind']!r} needs the field {lacking[0]!r}")
        found.append(build(kind, fields, where))
    return found


def file_name(figure: Figure) -> str:
    """Returns what the files of a figure are called, such as "curves_validation_loss"."""
    parts = [type(figure).__name__.lower()]
    parts += [value for value in dataclasses.asdict(figure).values() if isinstance(value, str) and value]
    return re.sub(r"[^\w.]+", "_", "_".join(parts)).strip("_")
