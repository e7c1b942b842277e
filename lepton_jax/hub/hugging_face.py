"""Checkpoint folders as `transformers` keeps them: `config.json`, tensors, tokenizer files; read and written.

A parameter of ours is read straight into its place: of a stack of layers, layer by layer, and on a mesh each device's
shard alone, so that no more is in memory than the model and one of its arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lepton_jax import workdir
from lepton_jax.config import ModelConfig
from lepton_jax.core import sharding, trees
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.hub import purposes, tensors
from lepton_jax.hub.bundle import Bundle, Card, Source, complete
from lepton_jax.hub.families import FAMILIES, Family, Tensor
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Head, Transformer, abstract_params

OLD_NAMES = ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta"))


def load(
    folder: Path,
    head: Head | None = None,
    labels: Sequence[str] = (),
    task: str | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Bundle:
    """Loads a folder of a family that `families.FAMILIES` has; parameters become float32.

    Args:
      folder: has `config.json`, weights, and mostly a tokenizer.
      head: None: the one that `config.json` names; else this one, initialised where the weights lack it.
      labels, task: what the head is for, see `purposes.choose`. Where that of the weights is for something else, it is
        initialised too.
      mesh: places each parameter by the model's sharding rules; None: all on the first device.
      seed: of what is initialised.

    Raises:
      UserError: no or another `config.json`, a feature or a head that this package does not have, a tensor that is
        missing or has another shape than `config.json` says, or a damaged file.
    """
    path = folder / "config.json"
    config = workdir.read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: names no model_type, so it is no model's config; known: {', '.join(FAMILIES)}")
    if config["model_type"] not in FAMILIES:
        raise UserError(f"{path}: model_type={config['model_type']!r}: unknown; known: {', '.join(FAMILIES)}")
    family = FAMILIES[config["model_type"]]
    stored = tensors.open_folder(folder)
    names = _Names(family, stored)
    head = head or _head(family, config, names, path)
    family.require(head)
    purpose, fresh = _purpose(family, config, head, labels, task, path)
    try:
        settings = family.read(config, head, str(path))
    except TypeError as error:
        raise UserError(f"{path}: a field has another type than it should ({error})") from None
    _check(settings, path)
    card = Card(settings, head, purpose.config, settings.max_positions - settings.position_offset, purpose.labels)
    model = Transformer(settings, head, card.num_outputs)
    table = family.tensors(settings, head)
    params, initialised, missing = _read(model, table, names, {"head"} if fresh else set(), mesh, seed, path)
    used = names.used | {names.find(name) for name in family.buffers}
    for pair in family.aliases.items():
        found = set(map(names.find, pair))
        used |= found if found & used else set()
    unexpected = tuple(name for name in stored if name not in used)
    if missing:
        logging.warning("%s: initialised, the weights do not have them: %s", folder, ", ".join(missing))
    if unexpected:
        logging.warning("%s: not part of a %s, left out: %s", folder, family.heads[head], ", ".join(unexpected))
    kept = {name: stored[name].dtype for name in stored if name in used}
    card = dataclasses.replace(card, source=Source(config, kept))
    tokenizer = tokenizers.load(folder) if tokenizers.is_here(folder) else None
    return Bundle(model, params, tokenizer, card, initialised, unexpected)


class _Names:
    """Finds a table's names in a checkpoint, with or without the family's prefix, in today's or old form."""

    def __init__(self, family: Family, stored: Mapping[str, tensors.Stored]):
        self.stored, self.used = stored, set[str]()
        self._prefix = f"{family.prefix}."
        self._bare = not any(name.startswith(self._prefix) for name in stored)
        # Older checkpoints have the bias of a head's last layer under one of its two names.
        self._biases = {alias: name for alias, name in family.aliases.items() if alias.endswith(".bias")}

    def find(self, name: str) -> str:
        """Returns the name under which the checkpoint has a tensor, or would have it."""
        bare = name.removeprefix(self._prefix) if self._bare else name
        if bare not in self.stored and name in self._biases:
            return self.find(self._biases[name])
        for now, old in OLD_NAMES:
            if bare not in self.stored and bare.endswith(now) and bare.removesuffix(now) + old in self.stored:
                return bare.removesuffix(now) + old
        return bare

    def has(self, name: str) -> bool:
        return self.find(name) in self.stored

    def get(self, name: str) -> tensors.Stored:
        found = self.find(name)
        self.used.add(found)
        return self.stored[found]


def _head(family: Family, config: Mapping[str, Any], names: _Names, path: Path) -> Head:
    """Returns the head of a checkpoint: as its architecture says, or the plain encoder."""
    architectures = config.get("architectures") or [family.heads["none"]]
    encoder: Head = "none"
    if "pooler" in family.heads:
        pooler = [tensor for tensor in family.tensors(ModelConfig(), "pooler") if tensor.path.startswith("pooler/")]
        encoder = "pooler" if all(names.has(tensor.name) for tensor in pooler) else "none"
    if architectures[0] == family.heads["none"]:
        return encoder
    for head, name in family.heads.items():
        if name == architectures[0]:
            return head
    known = ", ".join(dict.fromkeys(family.heads.values()))
    logging.warning("%s: architecture %s: its head is unknown, the encoder alone is loaded; known: %s", path,
                    architectures[0], known)  # fmt: skip
    return encoder


def _check(model: ModelConfig, path: Path) -> None:
    """Raises for sizes that no model has."""
    sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
    for name in sizes:
        if not isinstance(value := getattr(model, name), int) or value < 1:
            raise UserError(f"{path}: {name} is {value!r}, not a positive integer")
    if model.hidden_size % model.num_heads:
        raise UserError(f"{path}: {model.num_heads} heads do not divide a hidden size of {model.hidden_size}")
    if model.num_layer_groups and model.num_layers % model.num_layer_groups:
        raise UserError(
            f"{path}: {model.num_layer_groups} groups do not divide {model.num_layers} layers: not supported"
        )


def _purpose(
    family: Family, config: Mapping[str, Any], head: Head, labels: Sequence[str], task: str | None, path: Path
) -> tuple[purposes.Purpose, bool]:
    """Returns (what the head is to be for, whether it is initialised whatever the weights have).

    Heads of several kinds have tensors of the same names, but a language model's have names of their own.
    """
    if head not in purposes.LABELLED:
        return purposes.choose(head, labels, task, None)[0], False
    own = None
    if (config.get("architectures") or [family.heads[head]])[0] == family.heads[head]:
        own = purposes.read(config, head, str(path))
    purpose, new = purposes.choose(head, labels, task, own)
    if own is not None and new:
        had, wanted = ([one.task, *one.labels] for one in (own, purpose))
        logging.warning("%s: its head is for %s, a new one for %s is initialised", path, had, wanted)
    return purpose, new


def _read(
    model: Transformer, table: list[Tensor], names: _Names, fresh: set[str], mesh: Mesh | None, seed: int, path: Path
) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Returns (parameters, parts of them that are initialised, names of theirs that were missing for those parts).

    The parts named in `fresh` are initialised although they may be there.
    """
    abstract = abstract_params(model)
    where = sharding.shardings(abstract, mesh, RULES) if mesh is not None else None
    missing = {tensor.path: [name for name in _all_names(tensor, abstract) if not names.has(name)] for tensor in table}
    new = fresh | {path.split("/")[0] for path, lacking in missing.items() if lacking}  # parts to be initialised
    if new - {"head", "pooler"}:
        lacking = [name for part, each in missing.items() if not part.startswith(("head/", "pooler/")) for name in each]
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"{path.parent}: the weights lack {lacking[0]}{more}, which {path.name} asks for")
    params: dict[str, Any] = {}
    for tensor in table:
        if tensor.path.split("/")[0] in new:
            continue
        shape = trees.get(abstract, tensor.path).shape
        read = _reader(tensor, shape, names)
        if where is None:
            value = jax.device_put(read((slice(None),) * len(shape)))
        else:
            value = jax.make_array_from_callback(shape, trees.get(where, tensor.path), read)
        *parents, last = tensor.path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    params, initialised = complete(model, params, mesh, seed)
    return params, initialised, [name for lacking in missing.values() for name in lacking]


def _all_names(tensor: Tensor, params: Any) -> list[str]:
    """Returns the names of theirs that a parameter is read from."""
    if not tensor.stacked:
        return [tensor.name]
    depth = trees.get(params, tensor.path).shape[0]
    return [tensor.name.format(layer=layer) for layer in range(tensor.first, depth)]


def _reader(tensor: Tensor, shape: tuple[int, ...], names: _Names) -> Callable[[Any], np.ndarray]:
    """Returns what reads a part of a parameter, in float32, given the slices of that part."""
    inner = shape[1:] if tensor.stacked else shape
    theirs = (*inner[:-1], inner[-1] * tensor.parts)
    theirs = theirs[::-1] if tensor.transpose else theirs

    def one(name: str, index: tuple[slice, ...]) -> np.ndarray:
        stored = names.get(name)
        if stored.shape != theirs:
            raise UserError(f"{stored.file}: {name} is {list(stored.shape)}, config.json says {list(theirs)}")
        start, stop, _ = index[-1].indices(inner[-1])
        last = slice(start + tensor.part * inner[-1], stop + tensor.part * inner[-1])
        index = (*index[:-1], last)
        array = stored.read(index[::-1] if tensor.transpose else index)
        return array.T if tensor.transpose else array

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = _aligned([len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)])
        if not tensor.stacked:
            out[...] = one(tensor.name, index)
            return out
        for row, layer in enumerate(range(*index[0].indices(shape[0]))):
            # A norm that the first layer does not have stays what it is at the start.
            out[row] = one(tensor.name.format(layer=layer), index[1:]) if layer >= tensor.first else 1.0
        return out

    return read


def _aligned(shape: Sequence[int]) -> np.ndarray:
    """Returns an uninitialised float32 array that JAX takes over on a CPU; others it copies, and keeps for a while."""
    size = 4 * math.prod(shape)
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(np.float32).reshape(shape)
