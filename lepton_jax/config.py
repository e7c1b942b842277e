"""The sections of a config, their defaults, and every check that needs no data.

A recipe in `configs/` starts from `default_config()`, a locked `ConfigDict`, and changes fields. At the
edge of the package `resolve` turns it into the frozen dataclasses below; inside, nothing sees a ConfigDict.
The dataclasses are the one source of truth: a field is declared, typed, bounded and explained once, here.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from typing import Any, Literal

import ml_collections

from lepton_jax.core.errors import UserError, nearest


def _number(default: float, low: float | None = None, high: float | None = None, open_: str = "") -> Any:
    """A numeric field with bounds; `open_` holds "low" and/or "high" for bounds that are excluded."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "open": open_})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The Transformer encoder. Names follow `transformers` where it has one."""

    vocab_size: int = _number(0, 0)  # 0: the tokenizer's size, rounded up to a multiple of 64
    hidden_size: int = _number(256, 1)
    num_layers: int = _number(4, 1)
    num_heads: int = _number(4, 1)
    intermediate_size: int = _number(1024, 1)
    max_positions: int = _number(512, 2)  # the longest sequence, special tokens included
    type_vocab_size: int = _number(0, 0)  # token types ("segments" in BERT's paper); 0: none
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    norm_epsilon: float = _number(1e-6, 0, 1, "low high")
    positions: Literal["learned", "rotary"] = "rotary"
    rotary_base: float = _number(10_000.0, 1)
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    gated: bool = False  # GLU feed-forward: act(x W_gate) * (x W_up) (Shazeer 2020, arXiv:2002.05202)
    bias: bool = True
    dropout: float = _number(0.0, 0, 1, "high")
    tied_head: bool = True  # the masked-LM head multiplies by the token embedding table
    pooling: Literal["mean", "cls"] = "mean"
    initializer_range: float = _number(0.02, 0, None, "low")
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again
    unroll: int = _number(1, 0)  # layers per iteration of the scan over layers; 0: all of them
    init: str = ""  # a WORKDIR to start from; empty: random


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    name: Literal["masked_lm", "classification", "regression"] = "masked_lm"
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"  # of classification
    mask_rate: float = _number(0.15, 0, 1, "low high")
    mask_token_share: float = _number(0.8, 0, 1)  # of the predicted positions: replaced by [MASK]
    random_token_share: float = _number(0.1, 0, 1)  # ... replaced by a random token; the rest stay


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources are `tfds:NAME[:SPLIT]`, `text:GLOB`, `jsonl:FILE`, `csv:FILE`, `tsv:FILE`; several by commas."""

    train: str = ""
    validation: str = ""  # empty: the TFDS source's own split, else a seeded share of train
    test: str = ""  # likewise
    text: str = "text"  # the column with the text
    label: str = "label"  # the column with the label
    validation_share: float = _number(0.05, 0, 0.5, "high")
    test_share: float = _number(0.0, 0, 0.5, "high")
    split_seed: int = _number(0, 0)
    max_examples: int = _number(0, 0)  # training examples kept, chosen by split_seed; 0: all
    max_length: int = _number(128, 4)  # tokens a row, special tokens included
    pack: bool = True  # masked LM: several documents a row, isolated from each other
    tokenizer: str = (
        "unigram"  # "unigram" or "bpe" to train one; a WORKDIR, or a folder (Hugging Face too), to reuse one
    )
    tokenizer_size: int = _number(8192, 300)
    byte_fallback: bool = True
    lowercase: bool = True
    cache: str = ""  # empty: $LEPTON_JAX_CACHE, else ~/.cache/lepton_jax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    warmup_steps: int = _number(0, 0)
    decay_share: float = _number(0.2, 0, 1, "low")  # wsd: the last part of the steps, in which the rate falls
    beta1: float = _number(0.9, 0, 1, "high")
    beta2: float = _number(0.98, 0, 1, "high")
    epsilon: float = _number(1e-8, 0, None, "low")
    momentum: float = _number(0.9, 0, 1, "high")  # of sgd
    weight_decay: float = _number(0.01, 0)
    no_decay: tuple[str, ...] = (r"(^|/)bias$", r"(^|/)scale$")  # path patterns that weight decay spares
    frozen: tuple[str, ...] = ()  # path patterns that keep their values: no gradient, no optimizer state
    clip_norm: float = _number(1.0, 0)  # of the global gradient norm; 0: no clipping


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = _number(1000, 1)
    batch_size: int = _number(32, 1)  # rows a step, over all devices and accumulation steps
    accumulate: int = _number(1, 1)  # gradient accumulation: the batch in this many parts
    learning_rate: float = _number(1e-3, 0)
    seed: int = _number(0, 0)
    log_every: int = _number(20, 1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    shape: str = "data=-1"  # sizes of the axes data, fsdp, tensor; one may be -1: all devices that are left


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = _number(200, 1)  # steps; the last step is always saved
    keep: int = _number(1, 1)  # newest checkpoints kept; the best one is kept besides
    best: Literal["loss", "accuracy"] = "loss"  # of validation; the lowest loss or the highest accuracy is best


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    every: int = _number(200, 1)
    batch_size: int = _number(64, 1)


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    method: Literal["none", "int8"] = "none"
    keep_float: tuple[str, ...] = ()  # path patterns of weights that are not quantised


@dataclasses.dataclass(frozen=True)
class InferConfig:
    lengths: tuple[int, ...] = (16, 32, 64, 128)  # buckets; those beyond the model's length are left out
    batch_size: int = _number(64, 1)
    texts: tuple[str, ...] = ()  # sentences that a run predicts at its end, for a person to look at


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a stage and its sections."""

    stage: Literal["pretrain", "finetune"] = "pretrain"
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compress: CompressConfig = CompressConfig()
    infer: InferConfig = InferConfig()


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """A chain: `pretrain`, then `finetune` from it, then the same `finetune` from random weights."""

    stage: Literal["quickstart"] = "quickstart"
    pretrain: Config = Config(stage="pretrain")
    finetune: Config = Config(stage="finetune")


# What a model that starts from another one may set for itself; its other settings are the other one's.
OWN_MODEL_FIELDS = ("dropout", "dtype", "remat", "unroll", "pooling", "init")

STAGES: dict[str, type] = {"pretrain": Config, "finetune": Config, "quickstart": QuickstartConfig}


def default_config(stage: str = "pretrain") -> ml_collections.ConfigDict:
    """Returns the defaults of a stage as a locked ConfigDict, the start of every recipe."""
    config = ml_collections.ConfigDict(dataclasses.asdict(STAGES[stage](stage=stage)))
    return config.lock()


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Any:
    """Returns the frozen `Config` (or `QuickstartConfig`) of a ConfigDict, after every check that needs no data.

    Raises:
      UserError: an unknown field or stage, a wrong type, a value out of its bounds, or two fields that
        do not fit together. The message names the field, the value and what is allowed.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    stage = tree.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise UserError(f"config.stage={stage!r}: unknown stage; {nearest(str(stage), list(STAGES))}")
    resolved = _build(STAGES[stage], tree, "config")
    for where, run in runs(resolved):
        _check_together(run, where)
    if isinstance(resolved, QuickstartConfig):
        _check_chain(resolved)
    return resolved


def runs(config: Config | QuickstartConfig) -> list[tuple[str, Config]]:
    """Returns (path of the config, config) of each run that a resolved config describes."""
    if isinstance(config, QuickstartConfig):
        return [("config.pretrain", config.pretrain), ("config.finetune", config.finetune)]
    return [("config", config)]


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a resolved config as plain dicts and lists, as JSON would give them back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        return list(value) if isinstance(value, tuple) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _build(cls: type, tree: dict[str, Any], where: str) -> Any:
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
            values[name] = _build(hints[name], value, path)
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
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, element) for item in value):
            raise UserError(f"{path}={value!r}: must be a tuple of {element.__name__}")
        return tuple(value)
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


def _check_together(config: Config, where: str) -> None:
    """Raises for fields that are right alone and wrong together."""
    model, task, data, optim, train = config.model, config.task, config.data, config.optim, config.train

    def require(condition: bool, field: str, value: Any, allowed: str) -> None:
        if not condition:
            raise UserError(f"{where}.{field}={value!r}: {allowed}")

    require(model.hidden_size % model.num_heads == 0, "model.num_heads", model.num_heads,
            f"must divide model.hidden_size={model.hidden_size}")  # fmt: skip
    head_size = model.hidden_size // model.num_heads
    require(model.positions != "rotary" or head_size % 2 == 0, "model.num_heads", model.num_heads,
            f"rotary positions need an even head size, not hidden_size / num_heads = {head_size}")  # fmt: skip
    require(data.max_length <= model.max_positions, "data.max_length", data.max_length,
            f"longer than the model; at most model.max_positions={model.max_positions}")  # fmt: skip
    require(task.mask_token_share + task.random_token_share <= 1, "task.random_token_share", task.random_token_share,
            f"at most 1 - task.mask_token_share = {1 - task.mask_token_share:.3g}")  # fmt: skip
    require(train.batch_size % train.accumulate == 0, "train.accumulate", train.accumulate,
            f"must divide train.batch_size={train.batch_size}")  # fmt: skip
    require(optim.warmup_steps <= train.steps, "optim.warmup_steps", optim.warmup_steps,
            f"at most train.steps={train.steps}")  # fmt: skip
    require(data.validation_share + data.test_share < 1, "data.test_share", data.test_share,
            f"with data.validation_share={data.validation_share} nothing is left to train on")  # fmt: skip
    require(bool(data.train), "data.train", data.train, "name a source, such as text:corpus/*.txt or jsonl:train.jsonl")
    measured = ("loss",) if task.name == "regression" else ("loss", "accuracy")
    require(config.checkpoint.best in measured, "checkpoint.best", config.checkpoint.best,
            f"the task {task.name!r} measures {', '.join(map(repr, measured))}")  # fmt: skip
    if config.stage == "pretrain":
        require(not model.init, "model.init", model.init, "the stage 'pretrain' starts from random weights")
        require(task.name == "masked_lm", "task.name", task.name, "the stage 'pretrain' trains 'masked_lm'")
        require(config.compress.method == "none", "compress.method", config.compress.method,
                "the stage 'pretrain' writes no int8 model; compress after fine-tuning")  # fmt: skip
    else:
        require(task.name != "masked_lm", "task.name", task.name,
                "the stage 'finetune' trains 'classification' or 'regression'")  # fmt: skip
    require(bool(config.infer.lengths) and list(config.infer.lengths) == sorted(set(config.infer.lengths))
            and config.infer.lengths[0] > 3, "infer.lengths", config.infer.lengths,
            "must be increasing lengths, each above 3")  # fmt: skip
    for field in ("optim.no_decay", "optim.frozen", "compress.keep_float"):
        section, name = field.split(".")
        for pattern in getattr(getattr(config, section), name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{where}.{field}={pattern!r}: not a regular expression ({error})") from None


def _check_chain(config: QuickstartConfig) -> None:
    """Raises where the runs of a quickstart do not fit together, before the first of them trains."""
    for name in ("pretrain", "finetune"):
        stage = getattr(config, name).stage
        if stage != name:
            raise UserError(f"config.{name}.stage={stage!r}: must be {name!r}")
    if config.finetune.model.init:
        raise UserError(
            f"config.finetune.model.init={config.finetune.model.init!r}: a quickstart starts from its own pretraining"
        )
    for field in dataclasses.fields(ModelConfig):
        wanted, has = getattr(config.finetune.model, field.name), getattr(config.pretrain.model, field.name)
        if wanted != has and field.name not in OWN_MODEL_FIELDS:
            raise UserError(
                f"config.finetune.model.{field.name}={wanted!r}: must equal config.pretrain.model.{field.name}={has!r}"
            )


def explain_override(path: str, value: str) -> str:
    """Returns one line on why `--config.PATH=VALUE` cannot be applied to a recipe, as far as the fields tell.

    Args:
      path: such as `model.hidden_size`.
      value: as typed on the command line.
    """
    best: tuple[int, str] | None = None
    for cls in STAGES.values():
        where, names = cls, path.split(".")
        for depth, name in enumerate(names):
            hints = typing.get_type_hints(where) if dataclasses.is_dataclass(where) else {}
            if name not in hints:
                hint = nearest(name, list(hints)) if hints else "it has no fields of its own"
                if best is None or depth > best[0]:
                    best = (depth, f"config.{'.'.join(names[: depth + 1])}: unknown field; {hint}")
                break
            where = hints[name]
        else:
            if dataclasses.is_dataclass(where):
                fields = ", ".join(typing.get_type_hints(where))
                return f"config.{path}={value!r}: is a section; set one of its fields: {fields}"
            if cls is not QuickstartConfig and value and _is_typed(value, where):
                both = f"config.pretrain.{path} or config.finetune.{path}"
                return f"config.{path}: not a field of this recipe; did you mean {both}?"
            kind = getattr(where, "__name__", str(where))
            return f"config.{path}={value!r}: must be of type {kind}"
    return best[1] if best else f"config.{path}: unknown field"


def _is_typed(value: str, hint: Any) -> bool:
    """Whether a flag's text can be a value of the type."""
    if hint in (int, float):
        try:
            hint(value)
        except ValueError:
            return False
    return hint is not bool or value.lower() in ("true", "false", "1", "0")
