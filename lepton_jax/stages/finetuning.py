"""The stage "finetune": a model with labels, its honest evaluation, and its int8 form."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax import hub, infer, plan, processes, workdir
from lepton_jax.compress import Inputs, fake_int8
from lepton_jax.config import LOWER_IS_BETTER, METRICS, Config
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data import splits
from lepton_jax.data.rows import Rows
from lepton_jax.data.sources import Examples
from lepton_jax.data.spans import bio_labels
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.evaluate import intervals, lines
from lepton_jax.evaluate.lines import KINDS
from lepton_jax.infer import readings
from lepton_jax.stages.assessment import Judge, Line, Part, encode, measure_baseline, temperature
from lepton_jax.stages.completion import Summary, complete
from lepton_jax.stages.compression import SHORTEST, calibrated, compare, compress, require_observable
from lepton_jax.stages.training import Trainer
from lepton_jax.tasks import standard
from lepton_jax.train.logging import read_metrics

_PROFILED = 1000  # validation texts that the reference profile is of, at most


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
        self.kind = KINDS[config.task.name]
        with processes.in_turn():
            self.data = splits.load_splits(config.data, self.kind)
            source = hub.fetch(config.model.init, config.data.cache) if config.model.init else None
        labels = bio_labels(self.data.labels) if self.kind == "spans" else self.data.labels
        head, init = plan.head_of(config.task), None
        if source is not None:
            init = hub.load(source, head, labels, config.task.name, seed=config.train.seed)
        with processes.in_turn():
            tokenizer, self.config = self._start(config, init, mesh)
            card = plan.make_card(self.config, head, tokenizer, labels)
            card = dataclasses.replace(card, source=init.card.source if init else None)
            self.parts = {
                name: encode(examples, tokenizer, card) for name, examples in self._examples().items() if len(examples)
            }
            lengths = self.parts["train"].rows.lengths
            require_observable(config.compress, np.flatnonzero(lengths >= SHORTEST).tolist())
        if self.kind == "numbers":
            offset, scale = standard(self.parts["train"].rows.labels)
            card = dataclasses.replace(card, scale=scale, offset=offset)
        self.init = None
        if init is not None:
            if "head" not in init.initialised:
                init = hub.rescaled(init, card.scale, card.offset)  # a regressor's head has learnt in other units
            self.init = {name: part for name, part in init.params.items() if name not in init.initialised}
            self.init["embeddings"] = _pad_vocabulary(self.init["embeddings"], self.config.model.vocab_size)
        self.inputs, view = None, None  # how inputs are rounded in int8, where training is to know
        if config.compress.aware:
            self.inputs = self._observed(init, tokenizer, card)
            view = functools.partial(fake_int8, keep_float=config.compress.keep_float, inputs=self.inputs)
        validation = self.parts.get("validation", Part(self.data.validation, Rows([])))
        judge = Judge(card)
        self.trainer = Trainer(
            self.config, mesh, card, tokenizer,
            {"train": self.parts["train"].rows, "validation": validation.rows},
            measure=lambda outputs: judge.measure(validation, outputs), view=view,
        )  # fmt: skip
        self.held_out = "test" if "test" in self.parts else "validation"

    def _examples(self) -> dict[str, Examples]:
        data = self.data
        return {"train": data.train, "validation": data.validation, "test": data.test} | data.out_of_domain

    def _start(self, config: Config, init: hub.Bundle | None, mesh: Mesh) -> tuple[Tokenizer, Config]:
        """Returns the tokenizer, and the config with the settings of the model that the run starts from."""
        if init is None:
            return plan.tokenizer_of(config.data, self.data.train.texts), config
        if init.card.weights != "float32" or init.tokenizer is None:
            no_floats = f"{init.card.weights} weights; training needs float32"
            lack = "no tokenizer" if init.tokenizer is None else no_floats
            raise UserError(f"config.model.init={config.model.init!r}: holds {lack}")
        return init.tokenizer, dataclasses.replace(config, model=plan.inherit(config, init.config, mesh))

    def _observed(self, init: hub.Bundle | None, tokenizer: Tokenizer, card: hub.Card) -> dict[str, Inputs]:
        """Returns how inputs are rounded while training, and after it.

        What the run starts from decides alone, so that it is the same when the run goes on, and for every seed.
        """
        if init is None:
            return {}
        start = hub.Bundle(init.model, init.params | (self.init or {}), tokenizer, card, init.initialised)
        found = processes.on_first(lambda: calibrated(start, self.config.compress, self.data.train))
        return jax.tree.map(np.asarray, found)  # on no device: programs for any mesh hold them as constants

    def run(self, folder: Path, seed: int) -> Summary:
        """Trains and evaluates one seed in a folder."""
        bundle = self.trainer.fit(folder, seed, self.init)
        bundle, outputs = self._calibrated(bundle)
        hub.describe(folder, bundle.card, bundle.tokenizer)
        judge, part, found = Judge(bundle.card), self.parts[self.held_out], outputs(self.held_out)
        summary: Summary = {"finetune.evaluated_on": self.held_out, "finetune.data": self._report()}
        summary |= _named("finetune", judge.measure(part, found))
        if self.kind == "classes":
            majority = Counter(self.data.train.labels or ()).most_common(1)[0][0]
            summary["finetune.majority_accuracy"] = (part.examples.labels or []).count(majority) / len(part)
        summary |= _named("finetune.baseline", self.baselines.get(self.held_out, {}), "_")
        if calibrated := judge.calibration(part, found):
            summary["finetune.calibration"] = calibrated
        summary["finetune.slices"] = judge.slices(part, found)
        if abroad := [self._abroad(name, judge, outputs(name)) for name in self.data.out_of_domain]:
            summary["finetune.out_of_domain"] = abroad
        return summary | self._finish(folder, bundle, judge.predictions(part, found), outputs)

    def _profile(self, predictor: infer.Predictor) -> infer.Profile | None:
        """Returns what validation texts look like to the model, or those that it is evaluated on where there are none;
        of many, some from all over them."""
        some = self.parts["validation" if "validation" in self.parts else self.held_out].examples.some(_PROFILED)
        return infer.measure(predictor, some.texts, some.pairs) if len(some) else None

    def _calibrated(self, bundle: hub.Bundle) -> tuple[hub.Bundle, Callable[[str], list[np.ndarray]]]:
        """Returns the bundle with the temperature of its scores, and part -> outputs, computed once."""
        params = bundle.params
        outputs = functools.cache(lambda name: self.trainer.outputs(params, self.parts[name].rows))
        if self.kind in ("classes", "sets"):
            scale = 1 / temperature(self.parts["validation"], outputs("validation"))
            bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, scale=scale))
        return bundle, outputs

    @functools.cached_property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The metrics of a model of word counts, part -> metric -> value; none unless the config asks for it."""
        if not self.config.evaluate.baseline:
            return {}
        measured = [self.held_out, *self.data.out_of_domain]
        return processes.on_first(lambda: measure_baseline(self.trainer.card, self.parts, measured))

    def _abroad(self, name: str, judge: Judge, outputs: list[np.ndarray]) -> dict[str, Any]:
        part = self.parts[name]
        found = {metric: value for metric, value in judge.measure(part, outputs).items() if math.isfinite(value)}
        baseline = {f"baseline_{metric}": value for metric, value in self.baselines.get(name, {}).items()}
        return {"source": name, "examples": len(part), **found, **baseline}

    def _report(self) -> dict[str, Any]:
        """Returns what became of the data: what was read, dropped, and cut to fit into a row."""
        report = {name: dict(value) for name, value in self.data.report.items()}
        for name, part in self.parts.items():
            kept = report[name] if name in report else report["out_of_domain"][name]
            kept |= part.report
        return report

    def _finish(
        self, folder: Path, bundle: hub.Bundle, lines: list[Line], outputs: Callable[[str], list[np.ndarray]]
    ) -> Summary:
        """Compresses the model if the config says so, writes predictions, and returns the figures of the int8 model.

        Args:
          folder: of the run.
          bundle: the float model.
          lines: its predictions of the held-out examples.
          outputs: gives those of the model for a part of the data.
        """
        # Every process does the same on its own; only the files are the first one's.
        bundle = dataclasses.replace(bundle, params=sharding.on_this_process(bundle.params))
        plain = dataclasses.replace(self.config.infer, attention="auto")
        predictor, summary = infer.from_bundle(bundle, "float32", plain), {}
        processes.on_first(lambda: _write_lines(folder / "predictions.jsonl", lines))
        profile = self._profile(predictor)
        if profile is not None:
            processes.on_first(lambda: profile.save(folder))
        if self.config.compress.method == "int8":
            validation = self.parts["validation"]
            float_outputs = functools.partial(outputs, "validation")
            int8, gate = compress(
                self.config, folder / "int8", bundle, self.data.train, validation, float_outputs, self.inputs
            )
            summary = _named("int8", gate)
            if int8 is not None:
                judge = Judge(bundle.card)
                figures, quantised = compare(predictor, int8, judge, self.parts[self.held_out], lines)
                processes.on_first(lambda: _write_lines(folder / "int8" / "predictions.jsonl", quantised))
                if profile is not None:
                    processes.on_first(lambda: profile.save(folder / "int8"))
                summary, predictor = summary | _named("int8", figures), int8
        if texts := self.config.infer.texts:
            shown: list[Line] = []
            for text, out in zip(texts, predictor(texts), strict=True):
                guess, score = readings.in_short(out)
                shown.append({"text": text, "prediction": guess, "score": score})
            processes.on_first(lambda: _write_lines(folder / "examples.jsonl", shown))
        return summary


def _together(config: Config, summaries: Sequence[Summary], folders: Sequence[Path]) -> Summary:
    """Returns the figures of several seeds: the mean, standard deviation and 95% interval of each metric."""
    kind, names = KINDS[config.task.name], METRICS[config.task.name]
    runs = [workdir.read_jsonl(folder / "predictions.jsonl") for folder in folders]
    summary: Summary = {name: summaries[0][name] for name in ("finetune.evaluated_on", "finetune.data")}
    for name, value in summaries[0].items():
        values: Any = [each.get(name) for each in summaries]
        if isinstance(value, (int, float)) and name != "wall_seconds" and None not in values:
            summary[name] = float(np.mean(values))
            if name.partition(".")[2] in names:
                summary[f"{name}_std"] = float(np.std(values, ddof=1))
    for name in ("finetune.out_of_domain", "finetune.slices"):
        if name in summaries[0]:
            summary[name] = [_mean(rows) for rows in zip(*(each[name] for each in summaries), strict=True)]
    if "finetune.calibration" in summaries[0]:
        errors = _mean([each["finetune.calibration"] for each in summaries])
        summary["finetune.calibration"] = {name: value for name, value in errors.items() if name != "bins"}
    drawn = [lines.figures(kind, run) for run in runs]
    for name in drawn[0]:
        bounds = intervals.interval([figures[name] for figures in drawn], len(runs[0]))
        if all(map(math.isfinite, bounds)):
            summary[f"finetune.{name}_interval"] = list(bounds)
    chosen = max(range(len(folders)), key=lambda run: _validated(folders[run], config.checkpoint.metric))
    seeds = [{"seed": config.train.seed + run, **_own(each)} for run, each in enumerate(summaries)]
    return summary | {"finetune.best_seed": config.train.seed + chosen, "finetune.seeds": seeds}


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what all rows have in common, and the mean of their numbers."""
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {
        name: float(np.mean([row[name] for row in rows])) if isinstance(rows[0][name], float) else rows[0][name]
        for name in shared
    }


def _validated(folder: Path, metric: str) -> float:
    """Returns how good the best checkpoint of a run is by a validation metric: the higher, the better."""
    sign, name = -1 if metric in LOWER_IS_BETTER else 1, f"validation/{metric}"
    values = [sign * line[name] for line in read_metrics(folder) if name in line]
    return max((value for value in values if not math.isnan(value)), default=-math.inf)


def _own(summary: Summary) -> dict[str, Any]:
    """Returns the figures that a table of seeds shows."""
    return {
        name.removeprefix("finetune."): value
        for name, value in summary.items()
        if isinstance(value, (int, float)) and not name.startswith(("finetune.baseline", "finetune.majority"))
    }


def _named(group: str, metrics: Mapping[str, float], joint: str = ".") -> Summary:
    """Returns metrics that are defined under the names of a summary."""
    return {f"{group}{joint}{name}": value for name, value in metrics.items() if math.isfinite(value)}


def _pad_vocabulary(embeddings: dict[str, Any], size: int) -> dict[str, Any]:
    """Returns embeddings whose token table has `size` rows, the new ones 0, see `plan.inherit`."""
    table = embeddings["token"]
    return embeddings | {"token": jnp.pad(table, ((0, size - table.shape[0]), (0, 0)))}


def _write_lines(path: Path, lines: Sequence[Line]) -> None:
    workdir.replace_file(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
