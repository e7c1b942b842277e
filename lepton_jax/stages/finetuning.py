"""The stage "finetune": a model with labels, its honest evaluation, and its int8 form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax import hub, infer, plan, processes, workdir
from lepton_jax.compress import quantize_int8
from lepton_jax.config import METRICS, Config
from lepton_jax.core import sharding, trees
from lepton_jax.core.errors import UserError
from lepton_jax.data import splits, tokenizers
from lepton_jax.data.sources import Examples
from lepton_jax.data.spans import bio_labels
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.evaluate import calibration, intervals, slices
from lepton_jax.infer.predictor import Predictor, speedup
from lepton_jax.stages.assessment import KINDS, Judge, Part, encode, fit_baseline
from lepton_jax.stages.completion import Summary, complete
from lepton_jax.stages.training import Trainer


def finetune(config: Config, folder: Path, mesh: Mesh) -> tuple[Summary, dict[str, Path]]:
    """Trains a model on labelled texts, evaluates it on held-out ones, and compresses it if the config says so.

    With `train.seeds` above 1 each seed is a run of its own in `folder/seed_N`, and the summary is of all of them.

    Returns:
      (summary, title -> folder of each run).
    """
    tuning = _Tuning(config, mesh)
    if config.train.seeds == 1:
        return tuning.run(folder, config.train.seed), {"finetune": folder}
    summaries, sections = [], {}
    for seed in range(config.train.seed, config.train.seed + config.train.seeds):
        train = dataclasses.replace(config.train, seed=seed, seeds=1)
        where = folder / f"seed_{seed}"

        def work(where: Path = where, seed: int = seed) -> tuple[Summary, dict[str, Path]]:
            return tuning.run(where, seed), {"finetune": where}

        summaries.append(complete(where, dataclasses.replace(config, train=train), work))
        sections[f"seed {seed}"] = where
    return _together(config, summaries, list(sections.values())), sections


class _Tuning:
    """What the seeds of a run share: data, tokenizer, the model to start from, compiled programs, the baseline."""

    def __init__(self, config: Config, mesh: Mesh):
        kind = KINDS[config.task.name]
        with processes.in_turn():
            self.data = splits.load_splits(config.data, kind)
            source = hub.fetch(config.model.init, config.data.cache) if config.model.init else None
        names = self.data.labels
        labels = bio_labels(names) if kind == "spans" else names
        init = None
        if source is not None:
            head = plan.head_of(config.task)
            init = hub.load(source, head, labels, config.task.name, seed=config.train.seed)
        with processes.in_turn():
            tokenizer, self.config = self._start(config, init, mesh)
            card = plan.make_card(self.config, plan.head_of(config.task), tokenizer, labels)
            card = dataclasses.replace(card, source=init.card.source if init else None)
            self.parts = {
                name: encode(examples, tokenizer, card) for name, examples in self._examples().items() if len(examples)
            }
        self.init = None
        if init is not None:
            self.init = {name: part for name, part in init.params.items() if name not in init.initialised}
            self.init["embeddings"] = _pad_vocabulary(self.init["embeddings"], self.config.model.vocab_size)
        self.judge = Judge(card)
        validation = self.parts.get("validation", Part.none())
        self.trainer = Trainer(
            self.config, mesh, card, tokenizer,
            {"train": self.parts["train"].rows, "validation": validation.rows},
            measure=lambda outputs: self.judge.measure(validation, outputs),
        )  # fmt: skip
        self.baseline = None

    def _examples(self) -> dict[str, Examples]:
        data = self.data
        return {"train": data.train, "validation": data.validation, "test": data.test} | data.out_of_domain

    def _start(self, config: Config, init: hub.Bundle | None, mesh: Mesh) -> tuple[Tokenizer, Config]:
        """Returns the tokenizer, and the config with the settings of the model that the run starts from."""
        if init is None:
            return tokenizers.from_config(config.data, self.data.train.texts), config
        if init.card.weights != "float32" or init.tokenizer is None:
            no_floats = f"{init.card.weights} weights; training needs float32"
            lack = "no tokenizer" if init.tokenizer is None else no_floats
            raise UserError(f"config.model.init={config.model.init!r}: holds {lack}")
        return init.tokenizer, dataclasses.replace(config, model=plan.inherit(config, init.config, mesh))

    def run(self, folder: Path, seed: int) -> Summary:
        """Trains and evaluates one seed in a folder."""
        config, trainer, parts = self.config, self.trainer, self.parts
        bundle = trainer.fit(folder, seed, self.init)

        def outputs(name: str) -> list[np.ndarray]:
            return trainer.outputs(bundle.params, parts[name].rows)

        validated = outputs("validation")
        scale, offset = self.judge.rescale(trainer.task, parts["validation"], validated)
        card = dataclasses.replace(bundle.card, scale=scale, offset=offset)
        bundle = dataclasses.replace(bundle, card=card)
        hub.describe(folder, card, bundle.tokenizer)
        judge = Judge(card)

        held_out = "test" if "test" in parts else "validation"
        examples = parts[held_out].examples
        found = validated if held_out == "validation" else outputs(held_out)
        lines = judge.predictions(parts[held_out], found)
        figures = judge.measure(parts[held_out], found)
        figures |= {"evaluated_on": held_out, "data": self.data.report | {"encoded": self._encoded()}}
        figures["calibration"] = judge.calibration(parts[held_out], found)
        figures["slices"] = judge.slices(lines)
        if KINDS[config.task.name] == "classes":
            counts = np.bincount(parts["train"].rows.labels)  # pyright: ignore[reportArgumentType, reportCallIssue]
            figures["majority_accuracy"] = float(np.mean(parts[held_out].rows.labels == counts.argmax()))
        baseline = self._baseline(held_out)
        figures |= {f"baseline_{name}": value for name, value in baseline.get(held_out, {}).items()}
        abroad = [
            {"source": name, "examples": len(each), **judge.measure(parts[name], outputs(name))}
            | {f"baseline_{metric}": value for metric, value in baseline.get(name, {}).items()}
            for name, each in self.data.out_of_domain.items()
        ]
        figures |= {"out_of_domain": abroad} if abroad else {}
        summary = {f"finetune.{name}": value for name, value in figures.items() if value is not None}

        # From here on every process does the same on its own; only the files are the first one's.
        bundle = dataclasses.replace(bundle, params=sharding.on_this_process(bundle.params))
        predictor = Predictor(bundle, "float32", config.infer)
        if config.compress.method == "int8":
            int8 = _compress(config, folder / "int8", bundle)
            smaller, quantised = _compare(predictor, int8, lines, parts[held_out], judge)
            summary |= {f"int8.{name}": value for name, value in smaller.items()}
            predictor, lines = int8, quantised
        processes.on_first(lambda: _write_lines(folder / "predictions.jsonl", lines))
        if config.infer.texts:
            shown = [
                {"text": text, **_shown(out)}
                for text, out in zip(config.infer.texts, predictor(config.infer.texts), strict=True)
            ]
            processes.on_first(lambda: _write_lines(folder / "examples.jsonl", shown))
        return summary
