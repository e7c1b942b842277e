"""The collectives of a compiled program: what devices send each other, counted in XLA's own text of it."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
                     r"(?:\{([^}]*)\}|(%?[\w.\-]+))")  # fmt: skip
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program."""

    kind: str  # one of KINDS
    bytes: int  # of the whole array that it gathers, reduces, scatters or exchanges within one group, once
    group: int  # devices that take part together
    times: int  # how often the program runs it

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all, by a ring (Patarasu and Yuan 2009): 2 (n - 1) / n of an array that is
        reduced on every device, (n - 1) / n of one that is gathered, scattered or exchanged."""
        share = 1.0 if self.kind in ("collective-permute", "collective-broadcast") else (self.group - 1) / self.group
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(compiled: Any) -> list[Collective]:
    """Returns the collectives of a compiled program, those in loops with the number of their iterations.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` gives.

    Raises:
      ValueError: a loop that holds a collective has no known number of iterations.
    """
    return parse(compiled.as_text())


def parse(text: str) -> list[Collective]:
    """Returns the collectives of a program in XLA's text form, see `collectives`."""
    found: dict[str, list[Collective]] = {}
    calls: dict[str, list[tuple[str, int | None, str | None]]] = {}
    bounds: dict[str, list[int]] = {}  # the integer constants of a computation
    entry = name = ""
    everyone = int(partitions[1]) if (partitions := re.search(r"\bnum_partitions=(\d+)", text)) else 1
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            entry = name if start[1] else entry
            found[name], calls[name], bounds[name] = [], [], []
        elif name and (op := _OP.match(line)):
            result, kind, rest = op.groups()
            if kind.removesuffix("-start") in KINDS:
                found[name].append(_collective(result, kind, rest, everyone))
            if kind == "constant" and (number := re.match(r"(\d+)\)", rest)):
                bounds[name].append(int(number[1]))
            trips, condition = _TRIPS.search(rest), re.search(r"condition=%?([\w.\-]+)", rest)
            times = (int(trips[1]) if trips else None) if kind == "while" else 1
            for several, one in _CALLED.findall(rest):
                for called in (several or one).split(","):
                    calls[name].append((called.strip().lstrip("%"), times, condition[1] if condition else None))

    def collect(name: str) -> list[Collective]:
        total = list(found.get(name, ()))
        for called, times, condition in calls.get(name, ()):
            inner = collect(called)
            if inner and times is None and condition and len(bounds.get(condition, ())) == 1:
                times = bounds[condition][0]  # a scan counts from 0 up to the one constant of its condition
            if inner and times is None:
                raise ValueError(f"a loop over {called} holds collectives, and how often it runs is not known")
            total += [dataclasses.replace(each, times=each.times * (times or 1)) for each in inner]
        return total

    return collect(entry)


def _collective(result: str, kind: str, rest: str, everyone: int) -> Collective:
    """Returns the collective of one line: its result's type, its name and what follows; `everyone` counts devices."""
    group = _group_size(rest, everyone)
    started, kind = kind.endswith("-start"), kind.removesuffix("-start")
    sizes = [int(math.prod(map(int, filter(None, shape.split(",")))) * _width(dtype))
             for dtype, shape in _SHAPE.findall(result)]  # fmt: skip
    if started and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        sizes = sizes[len(sizes) // 2 :] if kind != "collective-permute" else sizes[1:2]  # (operands, results, ...)
    size = sum(sizes) * (group if kind == "reduce-scatter" else 1)
    return Collective(kind, size, group, 1)


def _width(dtype: str) -> float:
    """Returns the bytes of an element: `f32` has 4, `pred` 1, `s4` a half."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1


def _group_size(rest: str, everyone: int) -> int:
    """Returns how many devices form one group: {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'b'} have two.

    Without groups, as in {} and where pairs take their place, all devices are one.
    """
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])  # 'b':(1)2 is a part of size 2 of an axis
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    return everyone
