"""What quantisation-aware training wins back of what int8 costs, in particular where inputs have one step.

    python experiments/quantisation_aware.py --run=runs/movie_sentiment/seed_0 --workdir=runs/aware

`--run` may be given several times: each is the folder of a finished fine-tuning, of one seed. From its float model two
trainings go on, equally long and on the same batches: one as before ("trained on"), one with weights and inputs rounded
as int8 rounds them ("aware"; `compress.aware`). So what more training does by itself can be told apart.

How to read it: `quality` is the task's metric on the test texts (`config.QUALITY`), the mean over runs in points, with
that of each run behind it, `difference` is to the float32 model of the run itself, `same` how many of the predictions
are that model's, and `loss` the mean over the test texts, which tells forms apart that are equally good. Rows of int8
have one scale an output channel for weights, and for inputs one a token ("dynamic") or one step a layer ("static",
chosen by `--inputs`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from absl import app, flags

from lepton_jax import hub, infer, stages
from lepton_jax.config import QUALITY, CompressConfig, Config, InferConfig
from lepton_jax.core.fields import build
from lepton_jax.data import splits
from lepton_jax.evaluate.lines import KINDS
from lepton_jax.stages.assessment import Judge, encode
from lepton_jax.stages.compression import quantised
from lepton_jax.workdir import read_json, read_jsonl

RUNS = flags.DEFINE_multi_string("run", None, "The folder of a fine-tuning, of one seed.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the trainings go; what is complete there is not repeated.",
                              required=True)  # fmt: skip
STEPS = flags.DEFINE_integer("steps", 150, "Of each training.", 1)
RATE = flags.DEFINE_float("rate", 2e-5, "The learning rate.", 0)
INPUTS = flags.DEFINE_enum("inputs", "mse", ["absmax", "percentile", "mse"], "How steps are chosen.")
SMOOTH = flags.DEFINE_float("smooth", 0.0, "SmoothQuant's alpha.", 0, 1)
BUCKETS = InferConfig(devices=1)  # so that the speed is that of one


def after_training(run: Path, folder: Path) -> dict[str, tuple[float, float, list]]:
    """Returns form -> (quality, loss, predictions) of a finished run as it is, and of what is trained on from it."""
    config: Config = build(Config, read_json(run / "config.json")["config"] | {"infer": {}}, "config")
    bundle, data = hub.load(run), splits.load_splits(config.data, KINDS[config.task.name])
    assert bundle.tokenizer is not None
    part = encode(data.test if len(data.test) else data.validation, bundle.tokenizer, bundle.card)
    judge, metric, found = Judge(bundle.card), QUALITY[config.task.name], {}
    static = static_form(aware=False)
    for name, form in (("float32", None), ("int8, dynamic", CompressConfig(method="int8")), ("int8, static", static)):
        model = bundle if form is None else quantised(bundle, form, data.train)
        predictor = infer.from_bundle(model, "float32" if form is None else "int8", BUCKETS)
        outputs = predictor.outputs(part.examples.texts, part.examples.pairs)
        figures, lines = judge.measure(part, outputs), judge.predictions(part, outputs)
        found[name] = figures[metric], figures["loss"], [line["prediction"] for line in lines]
    for name, aware in (("trained on", False), ("aware", True)):
        where = folder / name.replace(" ", "_")
        summary = stages.run(further(config, run, aware), where)
        for form, part_of, lines in (("float32", "finetune", where), ("int8, static", "int8", where / "int8")):
            predictions = [line["prediction"] for line in read_jsonl(lines / "predictions.jsonl")]
            found[f"{name}, {form}"] = summary[f"{part_of}.{metric}"], summary[f"{part_of}.loss"], predictions
    return found


def static_form(aware: bool) -> CompressConfig:
    form = {"method": "int8", "inputs": INPUTS.value, "smooth": SMOOTH.value, "aware": aware}
    return build(CompressConfig, form, "compress")


def further(config: Config, run: Path, aware: bool) -> Config:
    """Returns the config of a training that goes on from a run."""
    every = max(STEPS.value // 3, 1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, init=str(run)),
        data=dataclasses.replace(config.data, out_of_domain=""),
        optim=dataclasses.replace(config.optim, warmup_steps=STEPS.value // 10, layer_decay=1.0, unfreeze=()),
        train=dataclasses.replace(config.train, steps=STEPS.value, learning_rate=RATE.value, seeds=1),
        checkpoint=dataclasses.replace(config.checkpoint, every=every),
        evaluate=dataclasses.replace(config.evaluate, every=every, patience=0, baseline=False),
        compress=static_form(aware),
        infer=BUCKETS,
    )


def main(argv: list[str]) -> None:
    del argv
    runs = [after_training(Path(run), Path(WORKDIR.value) / str(index)) for index, run in enumerate(RUNS.value)]
    print("| model | quality | of each run | difference | same | loss |\n|---|---|---|---|---|---|")
    for name in runs[0]:
        values = [100 * run[name][0] for run in runs]
        difference = np.mean(values) - np.mean([100 * run["float32"][0] for run in runs])
        same = np.mean([a == b for run in runs for a, b in zip(run[name][2], run["float32"][2], strict=True)])
        print(f"| {name} | {np.mean(values):.1f} | {', '.join(f'{value:.1f}' for value in values)} "
              f"| {difference:+.1f} | {same:.1%} | {np.mean([run[name][1] for run in runs]):.3f} |")  # fmt: skip


if __name__ == "__main__":
    app.run(main)
