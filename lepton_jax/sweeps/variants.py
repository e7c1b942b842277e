"""Variants of a config: differences from a parent, and the ways to combine lists of them.

    product(vary("task.mask_rate", 0.15, 0.3), seeds(3))                    # 2 x 3
    zip(vary("model.hidden_size", 64, 128), vary("model.num_heads", 2, 4))  # 2, side by side
    chain(case("parent"), vary("optim.name", "muon"))                       # 1 + 1, one after the other

A list is an ordinary tuple, so that an experiment may also filter it or build one by hand.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from lepton_jax.core.errors import UserError
from lepton_jax.results.differences import named

SEED = "seed"  # stands for `train.seed` of every training that the parent has


@dataclasses.dataclass(frozen=True)
class Variant:
    """One difference from a parent config."""

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # path of a field, or SEED -> value
    name: str = ""  # what tables call it; without the seed, so that those of one name differ by their seeds alone


def case(name: str, changes: Mapping[str, Any] | None = None) -> tuple[Variant, ...]:
    """Returns one variant with a name of its own; without changes it is the parent itself."""
    return (Variant(dict(changes or {}), name),)


def vary(path: str, *values: Any) -> tuple[Variant, ...]:
    """Returns a variant for each value of a field, named such as "mask_rate 0.15".

    Args:
      path: of the field, such as "task.mask_rate".
      values: of the field; one at least.
    """
    if not values:
        raise UserError(f"vary({path!r}): has no values; give one at least")
    return tuple(Variant({path: value}, named(path, value)) for value in values)


def seeds(count: int, first: int = 0) -> tuple[Variant, ...]:
    """Returns a variant for each seed: of `train.seed`, in a chain that of each of its trainings."""
    if count < 1:
        raise UserError(f"seeds({count}): must be 1 at least")
    return tuple(Variant({SEED: seed}) for seed in range(first, first + count))


def product(*parts: Iterable[Variant]) -> tuple[Variant, ...]:
    """Returns every combination of one variant of each list."""
    return tuple(map(_together, itertools.product(*parts)))


def zip(*parts: Iterable[Variant]) -> tuple[Variant, ...]:
    """Returns the first variants of all lists together, then the second ones, and so on.

    Raises:
      UserError: the lists are not equally long.
    """
    lists = [tuple(part) for part in parts]
    if len(set(map(len, lists))) > 1:
        raise UserError(f"zip(): lists of {', '.join(map(str, map(len, lists)))} variants; all must be equally long")
    return tuple(map(_together, builtins.zip(*lists, strict=True)))


def chain(*parts: Iterable[Variant]) -> tuple[Variant, ...]:
    """Returns the variants of all lists, one list after the other."""
    return tuple(itertools.chain(*parts))


def _together(variants: Iterable[Variant]) -> Variant:
    return functools.reduce(_merge, variants, Variant())


def _merge(a: Variant, b: Variant) -> Variant:
    for path in a.changes.keys() & b.changes.keys():
        if a.changes[path] != b.changes[path]:
            raise UserError(
                f"{a.name or b.name}: {path} is set twice, to {a.changes[path]!r} and to {b.changes[path]!r}"
            )
    return Variant({**a.changes, **b.changes}, ", ".join(filter(None, (a.name, b.name))))
