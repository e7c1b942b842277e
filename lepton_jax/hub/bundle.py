"""A trained model as one object, and how it lies in a folder of ours.

    FOLDER/model.json     the card: model settings, head, task, labels, form of the weights
    FOLDER/tokenizer/     the tokenizer
    FOLDER/checkpoints/   of a run: the parameters of its best checkpoint are the model's
    FOLDER/params/        of a written bundle: the parameters alone

A folder has checkpoints or params, never both.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from lepton_jax import checkpoint, workdir
from lepton_jax.compress import quantize_int8
from lepton_jax.config import CheckpointConfig, ModelConfig, TaskConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.models.transformer import Head, Transformer, abstract_params


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from, if from another library's folder: what saving it there again needs to know."""

    config: dict[str, Any]  # its config.json
    tensors: dict[str, str]  # name -> dtype of its tensors that the model has, as safetensors names them
    initialised: tuple[str, ...] = ()  # tensors that the model has and the folder lacked
    unexpected: tuple[str, ...] = ()  # tensors that the folder has and the model lacks


@dataclasses.dataclass(frozen=True)
class Card:
    """What a folder says of its model besides the numbers."""

    model: ModelConfig
    head: Head
    task: TaskConfig
    max_length: int
    labels: tuple[str, ...] = ()  # of a classifier, in the order of its outputs
    weights: Literal["float32", "int8"] = "float32"
    keep_float: tuple[str, ...] = ()  # of int8 weights: what was not quantised
    # Of a run: how its best checkpoint is told.
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    source: Source | None = None

    @property
    def num_outputs(self) -> int:
        return len(self.labels) if self.task.name == "classification" else int(self.task.name == "regression")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model ready to apply: `bundle.model.apply({"params": bundle.params}, token_ids, attention_mask)`."""

    model: Transformer
    params: Any
    tokenizer: Tokenizer
    card: Card

    @property
    def config(self) -> ModelConfig:
        return self.card.model


def describe(folder: Path, card: Card, tokenizer: Tokenizer) -> None:
    """Writes the card and the tokenizer into a folder, whose parameters come from checkpoints or from `write`."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder / "tokenizer")
        workdir.write_json(folder / "model.json", dataclasses.asdict(card))


def write(folder: Path, bundle: Bundle) -> None:
    """Writes a bundle as a folder of its own, without the state of any training.

    Raises:
      UserError: the folder holds a model already; nothing of it is changed.
    """
    for name in ("params", "checkpoints"):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: is there already; choose another folder")
    describe(folder, bundle.card, bundle.tokenizer)
    checkpoint.save_params(folder / "params", bundle.params)


def load(folder: str | Path) -> Bundle:
    """Loads the model of a folder: a WORKDIR (the fine-tuned one of a quickstart), or one that `write` made.

    Raises:
      UserError: there is no model in the folder, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists() and (folder / "finetune" / "model.json").exists():
        folder = folder / "finetune"
    if not (folder / "model.json").exists():
        raise UserError(f"{folder}: no model here (no model.json); name the WORKDIR of a run that has trained")
    card = _read_card(folder / "model.json")
    tokenizer = tokenizers.load(folder / "tokenizer")
    model = Transformer(card.model, card.head, card.num_outputs)
    shapes = abstract_params(model)
    if card.weights == "int8":
        shapes = jax.eval_shape(lambda params: quantize_int8(params, card.keep_float), shapes)
    if (folder / "params").exists():
        params = checkpoint.load_params(folder / "params", shapes)
    else:
        checkpoints = checkpoint.Checkpoints(folder / "checkpoints", card.checkpoint, read_only=True)
        step = checkpoints.best()
        if step is None:
            raise UserError(f"{folder}: the run has no finished checkpoint yet; let it train on")
        params = checkpoints.restore_params(step, shapes)
        checkpoints.close()
    return Bundle(model, params, tokenizer, card)


def _read_card(path: Path) -> Card:
    tree = workdir.read_json(path)
    try:
        nested = {"model": ModelConfig, "task": TaskConfig, "checkpoint": CheckpointConfig}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
        return Card(**{**values, **{name: cls(**tree[name]) for name, cls in nested.items()}})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the card of a model of this version ({error})") from None
