"""A bundle as a folder that `transformers` loads: `config.json`, tensors, tokenizer files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax import workdir
from lepton_jax.config import OWN_MODEL_FIELDS, ModelConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.disk import new_folder
from lepton_jax.hub import purposes, tensors
from lepton_jax.hub.bundle import Bundle, rescaled
from lepton_jax.hub.families import FAMILIES, Family, Tensor
from lepton_jax.hub.hugging_face import OLD_NAMES


def save(folder: str | Path, bundle: Bundle, shard_bytes: int = 5_000_000_000) -> None:
    """Writes a bundle as a folder that `transformers` loads.

    A model that came from such a folder gets its `config.json`, tensor names and dtypes back; a model of ours goes into
    the first family that can express it. The scale and offset of a card go into the last layer of the head, so that
    `transformers` gives the same scores.

    Args:
      folder: must not exist, or be empty; it appears complete or not at all.
      bundle: a model with float weights.
      shard_bytes: of a file; larger models are sharded.

    Raises:
      UserError: there is something in the folder, the weights are not plain arrays, or no family can express the model
        or its offset.
    """
    if bundle.card.weights != "float32":
        raise UserError(f"a model with {bundle.card.weights} weights cannot be saved for other libraries, only float32")
    family = _family(bundle)
    config = _config(family, bundle)
    bundle = rescaled(bundle)
    source = bundle.card.source
    prefixed = bundle.card.head not in ("none", "pooler")
    if source is not None:
        prefixed = prefixed or any(name.startswith(f"{family.prefix}.") for name in source.tensors)
    planned = _plan(family, bundle, prefixed)
    with new_folder(Path(folder).expanduser()) as part:
        workdir.write_json(part / "config.json", config)
        tensors.write(part, planned, shard_bytes)
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(part)


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
        *(() if head in purposes.LABELLED or head == "pooler" else ("pooler", "pooler_activation", "pooling")),
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
    if card.head in purposes.LABELLED:
        purposes.write(config, card.head, purposes.Purpose(card.task.name, card.labels))
    return config


def _plan(family: Family, bundle: Bundle, prefixed: bool) -> dict[str, Any]:
    """Returns what `tensors.write` takes: every tensor of theirs, and how to make it."""
    source = bundle.card.source.tensors if bundle.card.source is not None else {}
    parts: dict[str, list[tuple[Tensor, int | None]]] = {}
    for tensor in family.tensors(bundle.config, bundle.card.head):
        if tensor.stacked:
            for layer in range(tensor.first, trees.get(bundle.params, tensor.path).shape[0]):
                parts.setdefault(tensor.name.format(layer=layer), []).append((tensor, layer))
        else:
            parts.setdefault(tensor.name, []).append((tensor, None))

    def known(name: str) -> str:
        """Returns the name in the source that a tensor had, or the one that it gets."""
        name = name if prefixed else name.removeprefix(f"{family.prefix}.")
        old = next((name.removesuffix(now) + was for now, was in OLD_NAMES if name.endswith(now)), name)
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
    leaf = trees.get(params, tensor.path)
    inner = leaf.shape if layer is None else leaf.shape[1:]
    shape = (*inner[:-1], inner[-1] * tensor.parts)

    def make() -> np.ndarray:
        leaves = [trees.get(params, each.path) for each, _ in pieces]
        arrays = [np.asarray(leaf if layer is None else leaf[layer], np.float32) for leaf in leaves]
        array = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        return array.T if tensor.transpose else array

    return (shape[::-1] if tensor.transpose else shape), make
