"""In which fields do configs differ? What names runs, explains a comparison, and heads a report."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.config import STAGES, to_dict
from lepton_jax.workdir import flatten

# Last names of fields that change no figure, or, as seeds do, only by chance.
_ASIDE = ("seed", "seeds", "profile", "log_every", "cache", "keep", "dry_run")


@functools.cache
def defaults(stage: str) -> Mapping[str, Any]:
    """Returns the defaults of a stage, path of a field -> value; nothing of one that is not known."""
    return flatten(to_dict(STAGES[stage](stage=stage))) if stage in STAGES else {}


def field(config: Mapping[str, Any], path: str) -> Any:
    """Returns a field of a flat config; of one of an older revision, which lacks it, the default."""
    return config[path] if path in config else defaults(config.get("stage", "")).get(path)


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Returns the fields in which flat configs differ, path -> the value of each; seeds, and what changes no figure,
    are left out. A field that a config lacks has the default, and None where there is none."""
    paths = list(dict.fromkeys(path for config in configs for path in config))
    found = {path: tuple(field(config, path) for config in configs) for path in paths if not _aside(path)}
    return {path: values for path, values in found.items() if any(value != values[0] for value in values[1:])}


def named(path: str, value: Any) -> str:
    """Returns a field with its value for people, "mask_rate 0.15"; of one that says little alone, the whole path."""
    *sections, name = path.split(".")
    label = path if sections and name in ("name", "every", "method", "texts", "init") else name
    if isinstance(value, bool):
        return f"{label} {'on' if value else 'off'}"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return f"{label} {value:,}" if isinstance(value, int) else f"{label} {value}" if value not in ("", None) else (
        f"no {label}")  # fmt: skip


def _aside(path: str) -> bool:
    parts = path.split(".")
    return "mesh" in parts or parts[-1] in _ASIDE
