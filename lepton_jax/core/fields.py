"""Frozen dataclasses as the one declaration of a section's fields: their types, bounds and defaults."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

from lepton_jax.core.errors import UserError, nearest


def number(default: float, low: float | None = None, high: float | None = None, open_: str = "") -> Any:
    """A numeric field with bounds; `open_` holds "low" and/or "high" for bounds that are excluded."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "open": open_})


def build(cls: type, tree: Any, where: str) -> Any:
    """Returns a frozen section from a dict, every field of which is known, of its type and within its bounds.

    Raises:
      UserError: one is not; `where` names the section.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{where}={tree!r}: must be a section with fields, not {type(tree).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            raise UserError(f"{where}.{name}: unknown field; {nearest(name, list(fields))}")
    values = {}
    for name, value in tree.items():
        path = f"{where}.{name}"
        if dataclasses.is_dataclass(hints[name]):
            values[name] = build(hints[name], value, path)
        else:
            values[name] = _check_value(path, value, hints[name], fields[name].metadata)
    return cls(**values)


def _check_value(path: str, value: Any, hint: Any, bounds: typing.Mapping[str, Any]) -> Any:
    """Returns the value in its declared type, or raises what is wrong with it."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{path}={value!r}: must be one of {', '.join(map(repr, choices))}")
        return value
    if origin is tuple:
        element = typing.get_args(hint)[0]
        accepted = (int, float) if element is float else element
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, accepted) for item in value):
            raise UserError(f"{path}={value!r}: must be a tuple of {element.__name__}")
        return tuple(map(element, value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path}={value!r}: must be of type {hint.__name__}, not {type(value).__name__}")
    if bounds:
        low, high, excluded = bounds["low"], bounds["high"], bounds["open"]
        below = low is not None and (value < low or (value == low and "low" in excluded))
        above = high is not None and (value > high or (value == high and "high" in excluded))
        if below or above or not math.isfinite(value):
            left = "(-inf" if low is None else f"{'(' if 'low' in excluded else '['}{low}"
            right = "inf)" if high is None else f"{high}{')' if 'high' in excluded else ']'}"
            raise UserError(f"{path}={value!r}: must be in {left}, {right}")
    return value
