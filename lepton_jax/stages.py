"""The stages of a model's life: functions from a config and a folder to a summary. `main` and notebooks call them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax import hub, infer, plan, processes, report, workdir
from lepton_jax.compress import quantize_int8
from lepton_jax.config import (
    CompressConfig,
    Config,
    ConvertConfig,
    InferConfig,
    MeshConfig,
    QuickstartConfig,
    runs,
)
from lepton_jax.core import sharding, trees
from lepton_jax.core.errors import UserError
from lepton_jax.data import batches, mixtures, shards, splits, tokenizers
from lepton_jax.data.cache import cache_folder
from lepton_jax.data.sources import Examples
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.infer.metrics import classification_metrics, regression_metrics
from lepton_jax.infer.predictor import Prediction, Predictor, speedup
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import make_task
from lepton_jax.train.forecast import explain_out_of_memory
from lepton_jax.train.logging import read_metrics
from lepton_jax.train.loop import check_attention, check_mesh, fit
from lepton_jax.train.ramp import part_rows

Summary = dict[str, Any]


def run(config: Config | QuickstartConfig | ConvertConfig, folder: str | Path) -> Summary:
    """Runs the stage of a resolved config in a folder, and returns what `folder/summary.json` then holds.

    A run that was interrupted goes on from its newest checkpoint; one that is complete is not repeated. A dry run
    writes nothing, and returns what the run would need. Of several processes (`processes.start`) each calls this, and
    gets the same summary; the first one writes.

    Raises:
      UserError: the folder holds another run, the devices do not fit the config, or the data are not usable.
    """
    folder = Path(folder)
    _keep_compiled(config.cache if isinstance(config, ConvertConfig) else runs(config)[0][1].data.cache)
    meshes = [plan.make_mesh(each, where) for where, each in runs(config)]
    with processes.together():  # every check that needs no data, before any of them writes or trains
        for (where, each), mesh in zip(runs(config), meshes, strict=True):
            check_mesh(each, mesh, where)
            check_attention(each, mesh, where)
    same = [dataclasses.replace(each, mesh=MeshConfig(each.mesh.shape)) for _, each in runs(config)]
    processes.require_equal("other configs", repr(same or config))
    if not isinstance(config, ConvertConfig) and config.dry_run:
        return plan.dry_run(config, meshes)
    workdir.claim(folder, config)
    if processes.on_first((folder / "summary.json").exists):
        return processes.on_first(lambda: workdir.read_json(folder / "summary.json"))
    start = time.perf_counter()
    try:
        if isinstance(config, QuickstartConfig):
            summary, sections = quickstart(config, folder)
        elif isinstance(config, ConvertConfig):
            summary, sections = convert(config, folder), {"convert": folder}
        else:
            stage = pretrain if config.stage == "pretrain" else finetune
            summary, sections = stage(config, folder, meshes[0]), {config.stage: folder}
    except UserError as error:  # mostly data that were not as the config said
        if error.everywhere or jax.process_count() == 1:
            workdir.release(folder)
        raise
    summary["wall_seconds"] = time.perf_counter() - start

    def finish() -> Summary:
        report.write_report(folder / "report.html", sections, summary)
        workdir.write_json(folder / "summary.json", summary)  # last: with it, the run is complete
        return summary

    return processes.on_first(finish)


def quickstart(config: QuickstartConfig, folder: Path) -> tuple[Summary, dict[str, Path]]:
    """Pretrains, fine-tunes from that and, with the same budget, from random weights.

    Returns:
      (summary of all, title -> folder of each run).
    """
    pretrained = str(folder / "pretrain")
    model, data = config.finetune.model, config.finetune.data
    configs = {
        "pretrain": config.pretrain,
        "finetune": dataclasses.replace(config.finetune, model=dataclasses.replace(model, init=pretrained)),
        "from_scratch": dataclasses.replace(
            config.finetune,
            data=dataclasses.replace(data, tokenizer=pretrained),
            compress=CompressConfig(),
            infer=InferConfig(),
        ),
    }
    parts = {name: run(each, folder / name) for name, each in configs.items()}
    scratch, summary = parts["from_scratch"], parts["pretrain"] | parts["finetune"]
    for name in ("accuracy", "f1", "mean_squared_error"):
        if f"finetune.{name}" in scratch:
            summary[f"finetune.from_scratch_{name}"] = scratch[f"finetune.{name}"]
    return summary, {name: folder / name for name in configs}


def pretrain(config: Config, folder: Path, mesh: Mesh) -> Summary:
    """Trains a tokenizer and a language model, masked or causal, on text."""
    with processes.in_turn():
        data = splits.load_splits(config.data, None)
        tokenizer = tokenizers.from_config(config.data, data.train.texts)
        card = plan.make_card(config, config.task.name, tokenizer)
        common = (config.mesh.workers, jax.process_index() > 0, config.task.name != "causal_lm")
        mixture, measured = mixtures.encode(config.data, data.train, tokenizer, card.max_length, *common)
        held_out = shards.encode_documents(
            tokenizer, data.validation.texts, card.max_length, config.data.cache, *common
        )
    rows = {"train": mixture.rows, "validation": held_out}
    bundle = _fit(config, folder, mesh, card, tokenizer, rows, {}, sizes=mixture.sizes, weights=mixture.weights)
    history = processes.on_first(lambda: read_metrics(folder))
    losses = [line["loss"] for line in history if "loss" in line]

    def median(name: str) -> float | None:
        return float(np.median(found)) if (found := [line[name] for line in history if name in line]) else None

    best = min((line for line in history if "validation/loss" in line), key=lambda line: line["validation/loss"])
    summary = {
        "pretrain.loss_first": losses[0],
        "pretrain.loss_last": float(np.mean(losses[-max(len(losses) // 10, 1) :])),
        "pretrain.validation_loss": best["validation/loss"],
        "pretrain.tokens_per_second": median("tokens_per_second"),
        "pretrain.utilisation": median("utilisation"),
        "pretrain.parameters": trees.count(bundle.params),
        "pretrain.data": data.report | {"tokens": measured},
    }
    if config.task.name == "causal_lm":
        own = {"next_accuracy": best["validation/accuracy"], "perplexity": best["validation/perplexity"]}
    else:
        own = {"masked_accuracy": best["validation/accuracy"]}
    return summary | {f"pretrain.{name}": value for name, value in own.items()}


def finetune(config: Config, folder: Path, mesh: Mesh) -> Summary:
    """Trains a classifier or regressor, evaluates it on held-out text, and compresses it if the config says so."""
    regression = config.task.name == "regression"
    with processes.in_turn():
        data = splits.load_splits(config.data, "numbers" if regression else "classes")
        source = hub.fetch(config.model.init, config.data.cache) if config.model.init else None
    labels = () if regression else tuple(sorted(set(data.train.labels or ())))
    init = None
    if source is not None:
        init = hub.load(source, "classification", labels, seed=config.train.seed)
    with processes.in_turn():
        if init is None:
            tokenizer = tokenizers.from_config(config.data, data.train.texts)
        else:
            if init.card.weights != "float32" or init.tokenizer is None:
                no_floats = f"{init.card.weights} weights; training needs float32"
                lack = "no tokenizer" if init.tokenizer is None else no_floats
                raise UserError(f"config.model.init={config.model.init!r}: holds {lack}")
            model = plan.inherit(config, init.config, mesh)
            tokenizer, config = init.tokenizer, dataclasses.replace(config, model=model)
        card = plan.make_card(config, "classification", tokenizer, labels)
        card = dataclasses.replace(card, source=init.card.source if init else None)
        rows, targets = {}, {}
        for name, part in (("train", data.train), ("validation", data.validation)):
            rows[name] = batches.encode_examples(tokenizer, part.texts, card.max_length)
            targets[name] = _targets(part, labels)
    start = None
    if init:
        start = {name: part for name, part in init.params.items() if name not in init.initialised}
        start["embeddings"] = _pad_vocabulary(start["embeddings"], config.model.vocab_size)
    bundle = _fit(config, folder, mesh, card, tokenizer, rows, targets, start)
    # From here on every process does the same on its own; only the files are the first one's.
    bundle = dataclasses.replace(bundle, params=sharding.on_this_process(bundle.params))
    held_out = "test" if len(data.test) else "validation"
    examples = getattr(data, held_out)
    predictor = Predictor(bundle, "float32", config.infer)
    predictions = predictor(examples.texts)
    summary = {"finetune.evaluated_on": held_out, "finetune.data": data.report}
    summary |= {f"finetune.{name}": value for name, value in _measure(predictions, examples, labels).items()}
    if labels:
        majority = Counter(data.train.labels).most_common(1)[0][0]
        summary["finetune.majority_accuracy"] = (examples.labels or []).count(majority) / len(examples)
    if config.compress.method == "int8":
        int8 = _compress(config, folder / "int8", bundle)
        figures, predictions = _compare(predictor, predictions, int8, examples)
        summary |= {f"int8.{name}": value for name, value in figures.items()}
        predictor = int8
    processes.on_first(lambda: _write_predictions(folder / "predictions.jsonl", predictions, examples))
    if config.infer.texts:
        shown = Examples(list(config.infer.texts))
        processes.on_first(lambda: _write_predictions(folder / "examples.jsonl", predictor(shown.texts), shown))
    return summary


def convert(config: ConvertConfig, folder: Path) -> Summary:
    """Writes a trained model of any source into a folder: as a model of ours, or below it for `transformers`."""
    bundle = hub.load(config.source, cache=config.cache)
    # Both appear complete or not at all, so that a run that was killed just after one does not write it again.
    if config.form == "transformers" and not processes.on_first((folder / "transformers").exists):
        processes.on_first(lambda: hub.save(folder / "transformers", bundle))
    if config.form == "workdir" and not processes.on_first((folder / "params").exists):
        hub.write(folder, bundle)
    return {
        "convert.head": bundle.card.head,
        "convert.parameters": trees.count(bundle.params),
        "convert.initialised": list(bundle.initialised),
        "convert.unexpected": list(bundle.unexpected),
    }


def _fit(
    config: Config,
    folder: Path,
    mesh: Mesh,
    card: hub.Card,
    tokenizer: Tokenizer,
    rows: Mapping[str, Sequence[np.ndarray]],
    targets: dict[str, np.ndarray],
    init: Any = None,
    sizes: Sequence[int] = (),
    weights: Sequence[float] = (1.0,),
) -> hub.Bundle:
    """Trains the model of a card on token rows, and returns it with its best parameters.

    `sizes` and `weights` of a mixture are those of `batches.training_batches`.
    """
    with processes.together():
        if not len(rows["validation"]):
            raise UserError(
                "data.validation: there is no example to validate on; name a source, or set data.validation_share "
                "above 0"
            )
        resolved = dataclasses.replace(config, model=card.model)
        check_mesh(resolved, mesh)
        check_attention(resolved, mesh)
    if jax.process_count() > 1:
        held = [*rows.values(), list(targets.values())]
        processes.require_equal("other data", " ".join([tokenizer.fingerprint, *map(batches.fingerprint, held)]))
    hub.describe(folder, card, tokenizer)
    model = Transformer(card.model, card.head, card.num_outputs)
    common: dict[str, Any] = {
        "max_length": card.max_length,
        "pad_id": tokenizer.pad_id,
        "pack": config.packs,
        "process_index": jax.process_index(),
    }
    with processes.together():
        part = part_rows(config.train)
        training = batches.training_batches(
            rows["train"],
            part,
            labels=targets.get("train"),
            seed=config.train.seed,
            sizes=sizes,
            weights=weights,
            streams=config.data.streams,
            parts=sharding.process_rows(mesh, part),
            **common,
        )

    def validation() -> Any:
        size = config.evaluate.batch_size
        parts = sharding.process_rows(mesh, size)
        return batches.evaluation_batches(
            rows["validation"], size, labels=targets.get("validation"), parts=parts, **common
        )

    task = make_task(config.task, tokenizer, len(card.labels), config.packs)
    try:
        fitted = fit(
            config, folder, mesh=mesh, task=task, model=model, batches=training, validation=validation, init=init
        )
    except jax.errors.JaxRuntimeError as error:
        if explanation := explain_out_of_memory(error, config, mesh, task, model):
            raise UserError(explanation) from error
        raise
    return hub.Bundle(model, fitted.params, tokenizer, card)


def _pad_vocabulary(embeddings: dict[str, Any], size: int) -> dict[str, Any]:
    """Returns embeddings whose token table has `size` rows, the new ones 0, see `plan.inherit`."""
    table = embeddings["token"]
    return embeddings | {"token": jnp.pad(table, ((0, size - table.shape[0]), (0, 0)))}


def _targets(examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
    """Returns int32 class numbers, or float32 targets where there are no labels to number."""
    if not labels:
        return np.asarray(list(map(float, examples.labels or ())), np.float32)
    numbers = {label: number for number, label in enumerate(labels)}
    return np.asarray([numbers[label] for label in examples.labels or ()], np.int32)


def _measure(predictions: list[Prediction], examples: Examples, labels: tuple[str, ...]) -> dict[str, float]:
    if labels:
        return classification_metrics(examples.labels or (), [out["label"] for out in predictions], labels)
    return regression_metrics(_targets(examples, ()).tolist(), [out["score"] for out in predictions])


def _compress(config: Config, folder: Path, bundle: hub.Bundle) -> Predictor:
    """Writes the int8 model of a float bundle into a folder, and returns the predictor that it loads as."""
    card = dataclasses.replace(bundle.card, weights="int8", keep_float=config.compress.keep_float)
    # A run that was killed just after this does not write it again.
    if not processes.on_first((folder / "params").exists):
        hub.write(folder, dataclasses.replace(bundle, params=quantize_int8(bundle.params, card.keep_float), card=card))
    return infer.load(folder, "int8", config.infer)


def _compare(
    predictor: Predictor, predictions: list[Prediction], int8: Predictor, examples: Examples
) -> tuple[dict[str, float], list[Prediction]]:
    """Returns the figures of an int8 predictor beside its float original, and its predictions."""
    outputs = int8(examples.texts)
    figures = _measure(outputs, examples, int8.card.labels)
    if int8.card.labels:
        pairs = zip(predictions, outputs, strict=True)
        figures["agreement"] = float(np.mean([one["label"] == other["label"] for one, other in pairs]))
    figures["size_ratio"] = trees.num_bytes(predictor.params) / trees.num_bytes(int8.params)
    figures["speedup"] = speedup(predictor, int8, examples.texts)
    return figures, outputs


def _write_predictions(path: Path, predictions: list[Prediction], examples: Examples) -> None:
    """Writes one JSON line a text: text, label where known, prediction, score."""
    lines = []
    labels: list[Any] = list(examples.labels) if examples.labels else [None] * len(examples)
    for text, label, out in zip(examples.texts, labels, predictions, strict=True):
        prediction = out.get("label", out["score"])
        known = {} if label is None else {"label": label if "label" in out else float(label)}
        lines.append(
            json.dumps({"text": text, **known, "prediction": prediction, "score": out["score"]}, ensure_ascii=False)
        )
    workdir.replace_file(path, "".join(f"{line}\n" for line in lines))


def _keep_compiled(cache: str) -> None:
    """Turns JAX's persistent compilation cache on, unless the environment or the caller has chosen one."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(cache) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
