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
from jax.sharding import Mesh

from lepton_jax import checkpoint, processes, workdir
from lepton_jax.compress import quantize_int8, uncalibrated
from lepton_jax.config import CheckpointConfig, ModelConfig, TaskConfig
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.core.fields import build
from lepton_jax.data import tokenizers
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.disk import writing
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Head, Transformer, abstract_params, init_params


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from, if from another library's folder: what saving it there again needs to know."""

    config: dict[str, Any]  # its config.json
    tensors: dict[str, str]  # name -> dtype of its tensors that the model has, as safetensors names them


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
    step: tuple[str, ...] = ()  # ... the paths of kernels whose inputs have one step
    smooth: tuple[str, ...] = ()  # ... of those whose inputs are smoothed
    # Scores come from what the head gives, times `scale`, plus `offset`: 1 / temperature of a calibrated classifier
    # (Guo et al. 2017, arXiv:1706.04599); standard deviation and mean of the numbers that a regressor was trained on.
    scale: float = 1.0
    offset: float = 0.0
    # Of a run: how its best checkpoint is told.
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    source: Source | None = None

    @property
    def num_outputs(self) -> int:
        """Returns the classes of a text or token; 1 for regression, 0 for a head that has none."""
        return len(self.labels) or int(self.task.name == "regression")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model ready to apply: `bundle.model.apply({"params": bundle.params}, token_ids, attention_mask)`."""

    model: Transformer
    params: Any
    tokenizer: Tokenizer | None  # None: of a folder of another library that has no tokenizer
    card: Card
    initialised: tuple[str, ...] = ()  # parts of the parameters, such as "head", that the weights lacked
    unexpected: tuple[str, ...] = ()  # tensors of a folder of another library that the model has no use for
    folder: Path | None = None  # that the weights were read from

    @property
    def config(self) -> ModelConfig:
        return self.card.model


def rescaled(bundle: Bundle, scale: float = 1.0, offset: float = 0.0) -> Bundle:
    """Returns a bundle of the same scores whose card has this scale and offset: the last layer makes up for it.

    Raises:
      UserError: that layer has no bias, and the offset changes.
    """
    card = bundle.card
    if (card.scale, card.offset) == (scale, offset):
        return bundle
    factor, shift = card.scale / scale, (card.offset - offset) / scale
    output = {name: leaf * factor for name, leaf in bundle.params["head"]["output"].items()}
    if shift:
        if "bias" not in output:
            raise UserError(
                f"the last layer of this model has no bias that could hold the offset of its numbers, {card.offset:.6g}"
            )
        output["bias"] = output["bias"] + shift
    params = bundle.params | {"head": bundle.params["head"] | {"output": output}}
    return dataclasses.replace(bundle, params=params, card=dataclasses.replace(card, scale=scale, offset=offset))


def complete(
    model: Transformer, params: dict[str, Any], mesh: Mesh | None = None, seed: int = 0
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns (the parameters of a model, the names of the parts that `params` lacked and that are initialised).

    Parts are top-level entries, such as `head`; entries that the model does not have are left out.
    """
    shapes = abstract_params(model)
    where = sharding.shardings(shapes, mesh, RULES) if mesh is not None else None
    new = tuple(name for name in shapes if name not in params)
    whole = {name: params[name] for name in shapes if name in params}
    for name in new:  # jitted one by one, so that nothing but this part of the model is made
        place = None if where is None else where[name]
        make = jax.jit(lambda key, name=name: init_params(model, key)[name], out_shardings=place)
        whole[name] = make(jax.random.key(seed))
    return whole, new


def describe(folder: Path, card: Card, tokenizer: Tokenizer | None) -> None:
    """Writes the card and the tokenizer into a folder, whose parameters come from checkpoints or from `write`."""
    # What computed attention is the run's affair: the model may be applied on any device.
    card = dataclasses.replace(card, model=dataclasses.replace(card.model, attention="auto"))

    def write() -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if tokenizer is not None:
                tokenizer.save(folder / "tokenizer")
        workdir.write_json(folder / "model.json", dataclasses.asdict(card))

    processes.on_first(write)


def write(folder: str | Path, bundle: Bundle) -> None:
    """Writes a bundle as a folder of its own, without the state of any training.

    Raises:
      UserError: the folder holds a model already; nothing of it is changed.
    """
    folder = Path(folder).expanduser()
    for name in ("params", "checkpoints"):
        if processes.on_first((folder / name).exists):
            raise UserError(f"{folder / name}: is there already; choose another folder")
    describe(folder, bundle.card, bundle.tokenizer)
    checkpoint.save_params(folder / "params", bundle.params)


def read(folder: Path, mesh: Mesh | None = None) -> Bundle:
    """Reads the model of a folder of ours: of a run that has trained, or one that `write` made.

    Args:
      folder: has model.json.
      mesh: places each parameter by the model's sharding rules; None: all on the first device.

    Raises:
      UserError: there is no model in the folder, or a file of it is missing or damaged.
    """
    card = _read_card(folder / "model.json")
    tokenizer = tokenizers.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    model = Transformer(card.model, card.head, card.num_outputs)
    shapes = abstract_params(model)
    if card.weights == "int8":
        shapes = _int8_shapes(card, shapes)
    if mesh is not None:
        where = sharding.shardings(shapes, mesh, RULES)
        shapes = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, where)
    if (folder / "params").exists():
        params = checkpoint.load_params(folder / "params", shapes)
    else:
        checkpoints = checkpoint.Checkpoints(folder / "checkpoints", card.checkpoint, read_only=True)
        step = checkpoints.best()
        if step is None:
            raise UserError(f"{folder}: the run has no finished checkpoint yet; let it train on")
        params = checkpoints.restore_params(step, shapes)
        checkpoints.close()
    return Bundle(model, params, tokenizer, card, folder=folder)


def _int8_shapes(card: Card, shapes: Any) -> Any:
    def quantised(params: Any) -> Any:
        return quantize_int8(params, card.keep_float, uncalibrated(params, card.step, card.smooth))

    try:
        return jax.eval_shape(quantised, shapes)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"model.json: step={card.step!r}, smooth={card.smooth!r}: not kernels of the model ({error})"
        ) from None


def _read_card(path: Path) -> Card:
    tree = workdir.read_json(path)
    try:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()
        }
        for name, cls in (("model", ModelConfig), ("task", TaskConfig), ("checkpoint", CheckpointConfig)):
            values[name] = build(cls, tree[name], name)
        if tree["source"] is not None:
            values["source"] = Source(**tree["source"])
        return Card(**values)
    except (KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: not the card of a model of this version ({error})") from None
