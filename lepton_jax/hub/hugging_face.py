"""Checkpoint folders as `transformers` keeps them: `config.json`, tensors, tokenizer files; read and written.

A parameter of ours is read straight into its place: of a stack of layers, layer by layer, and on a mesh each device's
shard alone, so that no more is in memory than the model and one of its arrays.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lepton_jax import workdir
from lepton_jax.config import OWN_MODEL_FIELDS, ModelConfig, TaskConfig
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.hub import tensors
from lepton_jax.hub.bundle import Bundle, Card, Source, complete
from lepton_jax.hub.families import FAMILIES, Family, Tensor
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Head, Transformer, abstract_params

_LABELLED = ("classification", "token_classification")
_OLD_NAMES = ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta"))


def load(
    folder: Path, head: Head | None = None, labels: Sequence[str] = (), mesh: Mesh | None = None, seed: int = 0
) -> Bundle:
    """Loads a folder of a family that `families.FAMILIES` has; parameters become float32.

    Args:
      folder: has `config.json`, weights, and mostly a tokenizer.
      head: None: the one that `config.json` names; else this one, initialised where the weights lack it.
      labels: of a classifier with a new head; () takes those of `config.json`.
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
    if head is None:
        head = _head(family, config, names, path)
    family.require(head)
    try:
        settings = family.read(config, head, str(path))
    except TypeError as error:
        raise UserError(f"{path}: a field has another type than it should ({error})") from None
    _check(settings, path)
    card = _card(settings, head, config, tuple(labels), path)
    model = Transformer(settings, head, card.num_outputs)
    table = family.tensors(settings, head)
    params, initialised, missing = _read(model, table, names, mesh, seed, path)
    known = (*family.aliases, *family.aliases.values(), *family.buffers)
    used = names.used | {names.find(name) for name in known}
    unexpected = tuple(name for name in stored if name not in used)
    if missing:
        logging.warning("%s: initialised, the weights do not have them: %s", folder, ", ".join(missing))
    if unexpected:
        logging.warning("%s: not part of a %s, left out: %s", folder, family.heads[head], ", ".join(unexpected))
    kept = {name: stored[name].dtype for name in stored if name in used}
    card = dataclasses.replace(card, source=Source(config, kept))
    tokenizer = tokenizers.load(folder) if tokenizers.is_here(folder) else None
    return Bundle(model, params, tokenizer, card, initialised, unexpected)


def save(folder: Path, bundle: Bundle, shard_bytes: int = 5_000_000_000) -> None:
    """Writes a bundle as a folder that `transformers` loads.

    A model that came from such a folder gets its `config.json`, tensor names and dtypes back; a model of ours goes into
    the first family that can express it.

    Args:
      folder: must not exist, or be empty; it appears complete or not at all.
      bundle: a model with float weights.
      shard_bytes: of a file; larger models are sharded.

    Raises:
      UserError: there is something in the folder, the weights are not plain arrays, or no family can express the model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; choose another folder")
    if bundle.card.weights != "float32":
        raise UserError(f"a model with {bundle.card.weights} weights cannot be saved for other libraries, only float32")
    family = _family(bundle)
    config = _config(family, bundle)
    source = bundle.card.source
    prefixed = bundle.card.head not in ("none", "pooler")
    if source is not None:
        prefixed = prefixed or any(name.startswith(f"{family.prefix}.") for name in source.tensors)
    planned = _plan(family, bundle, prefixed)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        workdir.write_json(part / "config.json", config)
        tensors.write(part, planned, shard_bytes)
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
        for now, old in _OLD_NAMES:
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


def _card(model: ModelConfig, head: Head, config: Mapping[str, Any], labels: tuple[str, ...], path: Path) -> Card:
    task = TaskConfig(name="masked_lm")
    if head in _LABELLED:
        named = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
        try:
            known = tuple(str(named[key]) for key in sorted(named, key=int))
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: id2label={named!r}: must map numbers to labels") from None
        labels = labels or known
        multi = config.get("problem_type") == "multi_label_classification"
        task = TaskConfig(name="classification", loss="binary_cross_entropy" if multi else "cross_entropy")
        if head == "classification" and (len(labels) == 1 or config.get("problem_type") == "regression"):
            task, labels = TaskConfig(name="regression"), ()
    return Card(model, head, task, model.max_positions - model.position_offset, labels)


def _read(
    model: Transformer, table: list[Tensor], names: _Names, mesh: Mesh | None, seed: int, path: Path
) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Returns (parameters, parts of them that are initialised, names of theirs that were missing for those parts)."""
    abstract = abstract_params(model)
    where = sharding.shardings(abstract, mesh, RULES) if mesh is not None else None
    missing = {tensor.path: [name for name in _all_names(tensor, abstract) if not names.has(name)] for tensor in table}
    new = {path.split("/")[0] for path, lacking in missing.items() if lacking}  # parts to be initialised
    if new - {"head", "pooler"}:
        lacking = [name for part, each in missing.items() if not part.startswith(("head/", "pooler/")) for name in each]
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"{path.parent}: the weights lack {lacking[0]}{more}, which {path.name} asks for")
    params: dict[str, Any] = {}
    for tensor in table:
        if tensor.path.split("/")[0] in new:
            continue
        shape = _at(abstract, tensor.path).shape
        read = _reader(tensor, shape, names)
        if where is None:
            value = jnp.asarray(read((slice(None),) * len(shape)))
        else:
            value = jax.make_array_from_callback(shape, _at(where, tensor.path), read)
        *parents, last = tensor.path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    params, initialised = complete(model, params, mesh, seed)
    return params, initialised, [name for lacking in missing.values() for name in lacking]


def _at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _stacked(path: str) -> bool:
    return path.startswith("layers/")


def _all_names(tensor: Tensor, params: Any) -> list[str]:
    """Returns the names of theirs that a parameter is read from."""
    if not _stacked(tensor.path):
        return [tensor.name]
    depth = _at(params, tensor.path).shape[0]
    return [tensor.name.format(layer=layer) for layer in range(tensor.first, depth)]


def _reader(tensor: Tensor, shape: tuple[int, ...], names: _Names) -> Callable[[Any], np.ndarray]:
    """Returns what reads a part of a parameter, in float32, given the slices of that part."""
    inner = shape[1:] if _stacked(tensor.path) else shape
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
        return (array.T if tensor.transpose else array).astype(np.float32)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not _stacked(tensor.path):
            return one(tensor.name, index)
        layers = range(*index[0].indices(shape[0]))
        sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], inner, strict=True)]
        out = np.ones((len(layers), *sizes), np.float32)  # a norm that the first layer does not have stays 1
        for row, layer in enumerate(layers):
            if layer >= tensor.first:
                out[row] = one(tensor.name.format(layer=layer), index[1:])
        return out

    return read


def _family(bundle: Bundle) -> Family:
    """Returns the family to save as: the one that the model came from, or the first that can express it."""
    source = bundle.card.source
    candidates = list(FAMILIES.values()) if source is None else [FAMILIES[source.config["model_type"]]]
    reasons = []
    for family in candidates:
        reason = _misfit(family, bundle)
        if reason is None:
            return family
        reasons.append(f"{family.model_type}: {reason}")
    raise UserError(f"no family of `transformers` that this package knows has such a model ({'; '.join(reasons)})")


def _misfit(family: Family, bundle: Bundle) -> str | None:
    """Returns why a family cannot express a model, None where it can."""
    head = bundle.card.head
    if head not in family.heads:
        return f"has no head {head!r}"
    try:
        read = family.read(family.write(bundle.config), head, "config.json")
    except UserError as error:
        return str(error)
    for field in dataclasses.fields(ModelConfig):
        wanted, has = getattr(bundle.config, field.name), getattr(read, field.name)
        if wanted != has and field.name not in (*OWN_MODEL_FIELDS, *_unused(bundle)):
            return f"{field.name} is {has!r}, not {wanted!r}"
    return None


def _unused(bundle: Bundle) -> set[str]:
    """Returns the settings that a model has no use for, whose values do not matter."""
    model, head = bundle.config, bundle.card.head
    language = head in ("masked_lm", "causal_lm")
    return {
        *(() if language else ("tied_head", "head_transform", "head_activation")),
        *(() if head in _LABELLED or head == "pooler" else ("pooler", "pooler_activation", "pooling")),
        *(() if head not in ("none", "pooler") else ("output_bias",)),
        *(() if model.positions == "rotary" else ("rotary_base",)),
        *(() if model.global_every > 1 else ("local_window", "local_rotary_base")),
        *(() if model.relative else ("relative_span", "relative_max_distance", "relative_shared", "relative_norm")),
        "initializer_range",
    }


def _config(family: Family, bundle: Bundle) -> dict[str, Any]:
    card = bundle.card
    config: dict[str, Any] = family.write(bundle.config) if card.source is None else dict(card.source.config)
    if config.get("architectures") != [family.heads[card.head]]:
        config["architectures"] = [family.heads[card.head]]
    if card.head in _LABELLED:
        labels = card.labels or ("LABEL_0",)
        if config.get("id2label") != {str(number): label for number, label in enumerate(labels)}:
            config["id2label"] = {str(number): label for number, label in enumerate(labels)}
            config["label2id"] = {label: number for number, label in enumerate(labels)}
            config.pop("num_labels", None)
        if card.task.name == "regression":
            config["problem_type"] = "regression"
        elif card.task.loss == "binary_cross_entropy":
            config["problem_type"] = "multi_label_classification"
    return config


def _plan(family: Family, bundle: Bundle, prefixed: bool) -> dict[str, Any]:
    """Returns what `tensors.write` takes: every tensor of theirs, and how to make it."""
    source = bundle.card.source.tensors if bundle.card.source is not None else {}
    parts: dict[str, list[tuple[Tensor, int | None]]] = {}
    for tensor in family.tensors(bundle.config, bundle.card.head):
        if _stacked(tensor.path):
            for layer in range(tensor.first, _at(bundle.params, tensor.path).shape[0]):
                parts.setdefault(tensor.name.format(layer=layer), []).append((tensor, layer))
        else:
            parts.setdefault(tensor.name, []).append((tensor, None))

    def known(name: str) -> str:
        """Returns the name in the source that a tensor had, or the one that it gets."""
        name = name if prefixed else name.removeprefix(f"{family.prefix}.")
        old = next((name.removesuffix(now) + was for now, was in _OLD_NAMES if name.endswith(now)), name)
        return old if old in source and name not in source else name

    planned: dict[str, Any] = {}
    for name, pieces in parts.items():
        planned[known(name)] = (source.get(known(name), "F32"), *_made(bundle.params, pieces))
    for pair in family.aliases.items():
        for missing, there in (pair, pair[::-1]):
            if known(missing) in source and known(missing) not in planned and known(there) in planned:
                planned[known(missing)] = (source[known(missing)], *planned[known(there)][1:])
    for name, make in family.buffers.items():
        if known(name) in source:
            array = make(bundle.config)
            planned[known(name)] = (source[known(name)], array.shape, lambda array=array: array)
    return {name: planned[name] for name in sorted(planned)}


def _made(params: Any, pieces: list[tuple[Tensor, int | None]]) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
    """Returns (shape, what makes it) of a tensor of theirs from its parts."""
    pieces = sorted(pieces, key=lambda piece: piece[0].part)
    tensor, layer = pieces[0]
    leaf = _at(params, tensor.path)
    inner = leaf.shape if layer is None else leaf.shape[1:]
    shape = (*inner[:-1], inner[-1] * tensor.parts)

    def make() -> np.ndarray:
        leaves = [_at(params, each.path) for each, _ in pieces]
        arrays = [np.asarray(leaf if layer is None else leaf[layer], np.float32) for leaf in leaves]
        array = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        return array.T if tensor.transpose else array

    return (shape[::-1] if tensor.transpose else shape), make
