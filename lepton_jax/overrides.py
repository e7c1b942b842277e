"""What is wrong with a flag such as `--config.model.hidden_size=x`, in one line."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from lepton_jax.config import STAGES, QuickstartConfig
from lepton_jax.core.errors import nearest


def explain_override(path: str, value: str) -> str:
    """Returns one line on why `--config.PATH=VALUE` cannot be applied to a recipe, as far as the fields tell.

    Args:
      path: such as `model.hidden_size`.
      value: as typed on the command line.
    """
    best: tuple[int, float, str] | None = None  # the deepest place that was found, then the nearest known name
    for cls in STAGES.values():
        where, names = cls, path.split(".")
        for depth, name in enumerate(names):
            hints = typing.get_type_hints(where) if dataclasses.is_dataclass(where) else {}
            if name not in hints:
                hint = nearest(name, list(hints)) if hints else "it has no fields of its own"
                near = max((difflib.SequenceMatcher(None, name, known).ratio() for known in hints), default=0.0)
                if best is None or (depth, near) > best[:2]:
                    best = (depth, near, f"config.{'.'.join(names[: depth + 1])}: unknown field; {hint}")
                break
            where = hints[name]
        else:
            if dataclasses.is_dataclass(where):
                fields = ", ".join(typing.get_type_hints(where))
                return f"config.{path}={value!r}: is a section; set one of its fields: {fields}"
            if cls is not QuickstartConfig and value and _is_typed(value, where):
                both = f"config.pretrain.{path} or config.finetune.{path}"
                return f"config.{path}: not a field of this recipe; a quickstart has {both}"
            kind = getattr(where, "__name__", str(where))
            return f"config.{path}={value!r}: must be of type {kind}"
    return best[2] if best else f"config.{path}: unknown field"


def _is_typed(value: str, hint: Any) -> bool:
    """Whether a flag's text can be a value of the type."""
    if hint in (int, float):
        try:
            hint(value)
        except ValueError:
            return False
    return hint is not bool or value.lower() in ("true", "false", "1", "0")
