"""What must hold between the fields of a config that are right alone, before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lepton_jax.config.sections import (
    CLASSIFIERS,
    LANGUAGE_MODELS,
    METRICS,
    OWN_MODEL_FIELDS,
    RAMP_PARTS,
    Config,
    InferConfig,
    ModelConfig,
)
from lepton_jax.config.stages import (
    ApplyConfig,
    QuickstartConfig,
    ReportConfig,
)
from lepton_jax.core import rules
from lepton_jax.core.errors import UserError

APPLICABLE = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")  # the forms of files that a model is applied to


def check_together(config: Config, where: str) -> None:
    """Raises for fields that are right alone and wrong together."""
    model, task, data, optim, train = config.model, config.task, config.data, config.optim, config.train

    def require(condition: bool, field: str, value: Any, allowed: str) -> None:
        if not condition:
            raise UserError(f"{where}.{field}={value!r}: {allowed}")

    require(model.hidden_size % model.num_heads == 0, "model.num_heads", model.num_heads,
            f"must divide model.hidden_size={model.hidden_size}")  # fmt: skip
    require(model.num_layer_groups == 0 or model.num_layers % model.num_layer_groups == 0, "model.num_layer_groups",
            model.num_layer_groups, f"must divide model.num_layers={model.num_layers}")  # fmt: skip
    alike = model.global_every == 1 and model.first_norm
    require(model.num_layer_groups == 0 or alike, "model.num_layer_groups", model.num_layer_groups,
            "layers that share parameters are all alike: no model.global_every, no first_norm=False")  # fmt: skip
    require(model.first_norm or model.norm_position == "pre", "model.first_norm", model.first_norm,
            "only a model with model.norm_position='pre' can leave it out")  # fmt: skip
    require(model.position_offset == 0 or model.positions == "learned", "model.position_offset", model.position_offset,
            "is for model.positions='learned'")  # fmt: skip
    require(len(set(model.relative)) == len(model.relative) and set(model.relative) <= {"c2p", "p2c"}, "model.relative",
            model.relative, "may hold 'c2p' and 'p2c', each once")  # fmt: skip
    require(model.head_transform or not model.embedding_size or not model.tied_head, "model.head_transform",
            model.head_transform, "without it a tied head cannot reach model.embedding_size")  # fmt: skip
    require(model.attention != "int8", "model.attention", model.attention,
            "has no gradient to train by; 'auto', and for predictions infer.attention='int8'")  # fmt: skip
    head_size = model.hidden_size // model.num_heads
    require(model.positions != "rotary" or head_size % 2 == 0, "model.num_heads", model.num_heads,
            f"rotary positions need an even head size, not hidden_size / num_heads = {head_size}")  # fmt: skip
    require(data.max_length <= model.max_positions - model.position_offset, "data.max_length", data.max_length,
            f"longer than the model; at most model.max_positions={model.max_positions}"
            + (f" - model.position_offset={model.position_offset}" if model.position_offset else ""))  # fmt: skip
    require(task.mask_token_share + task.random_token_share <= 1, "task.random_token_share", task.random_token_share,
            f"at most 1 - task.mask_token_share = {1 - task.mask_token_share:.3g}")  # fmt: skip
    smallest, part = train.batch_size, f"train.batch_size={train.batch_size}"
    if train.ramp_share:
        require(smallest % RAMP_PARTS == 0, "train.ramp_share", train.ramp_share,
                f"a ramp begins with a quarter of the batch; {part} must be a multiple of {RAMP_PARTS}")  # fmt: skip
        smallest, part = smallest // RAMP_PARTS, f"a quarter of {part}, where the ramp begins"
    require(smallest % train.accumulate == 0, "train.accumulate", train.accumulate, f"must divide {part}")
    require(smallest % data.streams == 0, "data.streams", data.streams, f"must divide {part}")
    require(not train.profile or train.profile + 2 <= train.steps, "train.profile", train.profile,
            f"at most train.steps - 2 = {train.steps - 2}; the first two steps are not traced")  # fmt: skip
    require(optim.warmup_steps <= train.steps, "optim.warmup_steps", optim.warmup_steps,
            f"at most train.steps={train.steps}")  # fmt: skip
    require(data.validation_share + data.test_share < 1, "data.test_share", data.test_share,
            f"with data.validation_share={data.validation_share} nothing is left to train on")  # fmt: skip
    require(bool(data.train), "data.train", data.train, "name a source, such as text:corpus/*.txt or jsonl:train.jsonl")
    require(all(weight > 0 for weight in data.weights), "data.weights", data.weights, "each must be above 0")
    measured = METRICS[task.name]
    require(config.checkpoint.best in measured, "checkpoint.best", config.checkpoint.best,
            f"the task {task.name!r} measures {', '.join(map(repr, measured))}")  # fmt: skip
    for name in ("label_smoothing", "focal_gamma", "class_weights"):
        value = getattr(task, name)
        require(value in (0.0, "none") or task.name in CLASSIFIERS, f"task.{name}", value,
                f"is for {', '.join(map(repr, CLASSIFIERS))}, not for {task.name!r}")  # fmt: skip
    if task.class_weights not in ("none", "balanced"):
        rules.weights(task.class_weights, f"{where}.task.class_weights")
    if config.stage == "pretrain":
        for field in ("data.pair", "data.out_of_domain", "evaluate.baseline"):
            section, name = field.split(".")
            value = getattr(getattr(config, section), name)
            require(not value, field, value, "is for the stage 'finetune'")
        require(train.seeds == 1, "train.seeds", train.seeds, "is for the stage 'finetune'")
        require(data.batching != "bucketed", "data.batching", data.batching, "language models take 'packed', 'padded'")
        require(data.isolate or config.packs, "data.isolate", data.isolate,
                f"is for data.batching='packed'; a row of {data.batching!r} holds one document")  # fmt: skip
        require(not model.init, "model.init", model.init, "the stage 'pretrain' starts from random weights")
        require(task.name in LANGUAGE_MODELS, "task.name", task.name,
                "the stage 'pretrain' trains 'masked_lm' or 'causal_lm'")  # fmt: skip
        require(model.causal or task.name != "causal_lm", "model.causal", model.causal,
                "must be True for the task 'causal_lm', or the model sees what it is to predict")  # fmt: skip
        require(config.compress.method == "none", "compress.method", config.compress.method,
                "the stage 'pretrain' writes no int8 model; compress after fine-tuning")  # fmt: skip
    else:
        require(not data.weights, "data.weights", data.weights, "is for the stage 'pretrain'")
        require(data.isolate, "data.isolate", data.isolate, "is for the stage 'pretrain'; labelled texts are isolated")
        require(data.batching != "bucketed" or data.streams == 1, "data.streams", data.streams,
                "must be 1 with data.batching='bucketed': all rows of a batch have one length")  # fmt: skip
        require(data.batching != "bucketed" or not train.ramp_share, "train.ramp_share", train.ramp_share,
                "a batch that grows has no buckets; data.batching='packed' or 'padded'")  # fmt: skip
        require(not data.pair or task.name != "token_classification", "data.pair", data.pair,
                "is for whole texts, not for 'token_classification'")  # fmt: skip
        others = [name for name in METRICS if name not in LANGUAGE_MODELS]
        require(task.name in others, "task.name", task.name,
                f"the stage 'finetune' trains one of {', '.join(map(repr, others))}")  # fmt: skip
    check_buckets(config.infer, f"{where}.infer")
    require(max(config.infer.lengths, default=0) <= data.max_length, "infer.lengths", config.infer.lengths,
            f"longer than the model's rows; at most data.max_length={data.max_length}")  # fmt: skip
    require(config.infer.attention == "auto" or config.compress.method == "int8", "infer.attention",
            config.infer.attention, "is for compress.method='int8'")  # fmt: skip
    for name, default in (("inputs", "dynamic"), ("smooth", 0.0), ("aware", False), ("max_drop", 1.0)):
        value = getattr(config.compress, name)
        require(value == default or config.compress.method == "int8", f"compress.{name}", value,
                "is for compress.method='int8'")  # fmt: skip
    compress = config.compress
    plain = compress.inputs == "dynamic" and not compress.smooth
    chained = where != "config"  # a quickstart fine-tunes what it has pretrained
    require(not compress.aware or plain or bool(model.init) or chained, "compress.aware", compress.aware,
            "needs a model.init to observe inputs in, or compress.inputs='dynamic' and no compress.smooth")  # fmt: skip
    for field in ("optim.no_decay", "optim.frozen", "compress.keep_float"):
        section, name = field.split(".")
        for pattern in getattr(getattr(config, section), name):
            rules.compiles(pattern, f"{where}.{field}={pattern!r}")
    for rule in optim.rates:
        rules.parse(rule, float, f"{where}.optim.rates")
    for rule in optim.unfreeze:
        _, step = rules.parse(rule, int, f"{where}.optim.unfreeze")
        require(0 < step < train.steps, "optim.unfreeze", rule, f"its step must be from 1 to {train.steps - 1}")


def check_buckets(infer: InferConfig, where: str) -> None:
    """Raises for buckets that are none."""
    for name, least in (("lengths", 4), ("batch_sizes", 1)):
        values = getattr(infer, name)
        if list(values) != sorted(set(values)) or min(values, default=least) < least:
            raise UserError(f"{where}.{name}={values!r}: must be increasing numbers, each at least {least}")
    if not infer.batch_sizes:
        raise UserError(f"{where}.batch_sizes=(): must have a number of rows, such as 64")


def check_application(infer: ApplyConfig) -> None:
    """Raises where there is nothing to apply a model to, or no place for what comes out."""
    if not infer.input and not infer.texts:
        raise UserError("config.infer.input='': name a file with texts, such as texts.txt, or set config.infer.texts")
    if infer.input and not infer.output:
        raise UserError("config.infer.output='': name the file that gets the predictions, such as predictions.jsonl")
    if infer.output and not infer.input:
        raise UserError(
            f"config.infer.output={infer.output!r}: is for config.infer.input; config.infer.texts are shown"
        )
    kind = Path(infer.input).suffix
    if infer.input not in ("", "-") and kind not in APPLICABLE:
        raise UserError(f"config.infer.input={infer.input!r}: must end in {', '.join(APPLICABLE)}, or be '-'")
    if infer.attention == "int8" and infer.precision in ("float32", "bfloat16"):
        raise UserError(f"config.infer.attention='int8': is for an int8 model, not for {infer.precision}")
    if infer.pair and kind in ("", ".txt"):
        raise UserError(f"config.infer.pair={infer.pair!r}: lines of text have no second ones; take .jsonl or .csv")


def check_report(config: ReportConfig) -> None:
    """Raises where there is nothing to report on."""
    if not config.runs:
        raise UserError("config.runs='': name the folders of runs, such as 'runs/*'")
    if config.by and not config.x:
        raise UserError(f"config.by={config.by!r}: is for the figure over config.x; name that field too")


def check_chain(config: QuickstartConfig) -> None:
    """Raises where the runs of a quickstart do not fit together, before the first of them trains."""
    for name in ("pretrain", "finetune"):
        stage = getattr(config, name).stage
        if stage != name:
            raise UserError(f"config.{name}.stage={stage!r}: must be {name!r}")
        if getattr(config, name).dry_run:
            raise UserError(f"config.{name}.dry_run=True: is for the whole chain; set config.dry_run")
    for name in ("coordinator", "processes", "process", "timeout"):
        wanted, has = getattr(config.finetune.mesh, name), getattr(config.pretrain.mesh, name)
        if wanted != has:
            raise UserError(f"config.finetune.mesh.{name}={wanted!r}: must equal config.pretrain.mesh.{name}={has!r}")
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
