"""What makes a checkpoint trustworthy: `manifest.json`, with every array's type and every file's checksum.

Orbax notices no flipped bit and casts silently to another dtype; what is read is therefore first compared with this.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from lepton_jax.core.errors import UserError
from lepton_jax.workdir import read_json, write_json

NAME = "manifest.json"


class DamagedError(UserError):
    """A file of a checkpoint is missing or not as it was written."""


def describe(tree: Any) -> dict[str, str]:
    """Returns path -> type of every array in a tree, such as {"params/head/kernel": "float32[256,2]"}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }


def write(part: Path, manifest: dict[str, Any]) -> None:
    """Adds every file's size and checksum to the manifest of the checkpoint in `part`, and writes it there."""
    names = sorted(file.relative_to(part).as_posix() for file in part.glob("*/**/*") if file.is_file())
    sizes = [(part / name).stat().st_size for name in names]
    files = {
        name: {"bytes": size, "sha256": digest}
        for name, size, digest in zip(names, sizes, _digests(part, names), strict=True)
    }
    manifest = manifest | {"files": files}
    write_json(part / NAME, manifest | {"sha256": _digest(manifest)})


def read(path: Path, advice: str) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, or raises a UserError that ends in `advice`."""
    try:
        manifest = read_json(path / NAME)
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
            raise UserError(f"{path / NAME}: damaged (its checksum is not its own)")
    except UserError as error:
        raise DamagedError(f"{error}; {advice}") from None
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: list[str]) -> list[str]:
    """Returns the sha256 of files, several at a time: hashing releases the interpreter's lock."""

    def digest(name: str) -> str:
        with open(folder / name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(digest, names))


def verify(path: Path, manifest: dict[str, Any], items: set[str], advice: str) -> None:
    """Raises a UserError for the first file of `items` that is not as it was written."""
    files = {name: recorded for name, recorded in manifest["files"].items() if name.split("/")[0] in items}
    for name, recorded in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != recorded["bytes"]:
            found = "missing" if size is None else f"damaged ({size} bytes instead of {recorded['bytes']})"
            raise DamagedError(f"{path / name}: {found}; {advice}")
    for (name, recorded), digest in zip(files.items(), _digests(path, list(files)), strict=True):
        if digest != recorded["sha256"]:
            raise DamagedError(f"{path / name}: damaged (its checksum is not the one in {NAME}); {advice}")


def require_match(path: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises a UserError for the first array that is not in both, with the same shape and dtype."""
    for name in {**wanted, **saved}:
        if saved.get(name) != wanted.get(name):
            there, here = saved.get(name, "not there"), wanted.get(name, "not there")
            raise UserError(
                f"{path}: {name} is {there} in the checkpoint, {here} in the model; use the config that wrote it"
            )
