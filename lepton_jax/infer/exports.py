"""A predictor as a folder that runs without the code of its model.

    FOLDER/manifest.json   what it is, where it runs, every array's type, every file's sha256, and its own
    FOLDER/programs/32.bin the program of rows of 32 tokens, by `jax.export`: StableHLO for each platform
    FOLDER/params/         the parameters, as safetensors
    FOLDER/tokenizer/      the tokenizer
    FOLDER/reference/      the reference profile, if the model has one, see `profiles`

A program takes any number of rows; XLA compiles it for the device at hand when it is loaded. Nothing in the folder is
executed before its checksum is right, and none of it is Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from jax import export

import lepton_jax
from lepton_jax import manifest as manifests
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.disk import new_folder
from lepton_jax.infer.profiles import Profile
from lepton_jax.infer.programs import PRECISIONS, Program
from lepton_jax.infer.signature import Signature

PLATFORMS = ("cpu", "cuda", "tpu")
_FORM = "lepton_jax.export"
_VERSION = 1  # of this layout
_WEIGHTS = "params/params.safetensors"
_ADVICE = "export the model again"


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `write` made, damaged or not."""
    return (folder / manifests.NAME).exists() and (folder / "programs").is_dir()


def write(
    folder: str | Path, program: Program, lengths: Sequence[int], platforms: Sequence[str] = PLATFORMS,
    profile: Profile | None = None,
) -> None:  # fmt: skip
    """Writes a program as such a folder, which appears complete or not at all.

    Args:
      folder: must not exist, or be empty.
      program: of a model.
      lengths: of the rows it will take.
      platforms: of PLATFORMS, where it will run.
      profile: of the model.

    Raises:
      UserError: no such platform, a program that was exported before, or the folder cannot be written.
    """
    if (portable := program.portable) is None:
        raise UserError("this predictor was exported already; copy its folder, or export the model it came from")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise UserError(f"platforms={tuple(platforms)!r}: must be some of {', '.join(map(repr, PLATFORMS))}")
    leaves, tree = jax.tree_util.tree_flatten_with_path(program.params)
    flat = {trees.path_str(path): leaf for path, leaf in leaves}
    names = list(flat)  # in the order of the tree; JAX hands dicts over sorted by their keys
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}

    def forward(flat: Mapping[str, jax.Array], *batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        return portable(jax.tree.unflatten(tree, [flat[name] for name in names]), *batch)

    with new_folder(Path(folder).expanduser()) as part:
        (part / "programs").mkdir()
        (rows,) = export.symbolic_shape("rows")
        for length in lengths:
            batch = [jax.ShapeDtypeStruct((rows, length), jnp.int32)] * (3 if program.signature.typed else 2)
            if program.signature.task == "masked_lm":
                batch.append(jax.ShapeDtypeStruct((rows,), jnp.int32))
            exported = export.export(jax.jit(forward), platforms=platforms)(shapes, *batch)
            (part / "programs" / f"{length}.bin").write_bytes(exported.serialize())
        (part / "params").mkdir()
        safetensors.numpy.save_file({name: jax.device_get(leaf) for name, leaf in flat.items()}, part / _WEIGHTS)
        program.tokenizer.save(part / "tokenizer")
        if profile is not None:
            profile.save(part / "reference")
        manifests.write(part, {
            "form": _FORM, "version": _VERSION, "lepton_jax": lepton_jax.__version__, "jax": jax.__version__,
            "platforms": list(platforms), "precision": program.precision, "lengths": list(lengths),
            "signature": dataclasses.asdict(program.signature), "arrays": manifests.describe(flat),
        })  # fmt: skip


def read(folder: Path) -> tuple[Program, Profile | None]:
    """Returns the program that `write` wrote, and the model's profile.

    Raises:
      UserError: a file is missing or not as it was written, or it is of another version, or for another platform.
    """
    manifest = manifests.read(folder, _ADVICE)
    path = folder / manifests.NAME
    if manifest.get("form") != _FORM or manifest.get("version") != _VERSION:
        raise UserError(f"{path}: form {manifest.get('form')!r} of version {manifest.get('version')!r}; this package "
                        f"({lepton_jax.__version__}) reads {_FORM!r} of version {_VERSION}; {_ADVICE}")  # fmt: skip
    if _release(manifest["jax"]) > _release(jax.__version__):  # XLA would say so only when it compiles the program
        raise UserError(f"{path}: was written by JAX {manifest['jax']}, and this is JAX {jax.__version__}, which "
                        f"cannot read it; take that version or a newer one, or {_ADVICE}")  # fmt: skip
    platform = jax.default_backend()
    here = {"gpu": "cuda"}.get(platform, platform)
    if here not in manifest["platforms"]:
        raise UserError(f"{path}: is for {', '.join(manifest['platforms'])}, and this is {here}; export it with "
                        f"platforms=({here!r},)")  # fmt: skip
    manifests.verify(folder, manifest, {"programs", "params", "tokenizer", "reference"}, _ADVICE)
    signature = Signature.read(manifest["signature"], str(path))
    if manifest["precision"] not in PRECISIONS:
        raise UserError(f"{path}: precision={manifest['precision']!r}: must be one of {', '.join(PRECISIONS)}")
    calls = {length: _read_program(folder / "programs" / f"{length}.bin", manifest) for length in manifest["lengths"]}

    def forward(flat: Any, token_ids: jax.Array, *batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        return calls[token_ids.shape[1]](flat, token_ids, *batch)

    program = Program(
        forward,
        safetensors.numpy.load_file(folder / _WEIGHTS),
        signature,
        tokenizers.load(folder / "tokenizer"),
        manifest["precision"],
        tuple(manifest["lengths"]),
    )
    return program, Profile.find(folder / "reference")


def _release(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version of JAX: what a release writes, later ones of the same two read."""
    return tuple(int(part) for part in version.split(".")[:2])


def _read_program(path: Path, manifest: Mapping[str, Any]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    try:
        call: Any = export.deserialize(bytearray(path.read_bytes())).call
        return call
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: JAX {jax.__version__} cannot read what JAX {manifest['jax']} wrote ({reason}); take "
                        f"that version, or {_ADVICE}") from error  # fmt: skip
