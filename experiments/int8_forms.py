"""What the ways to round inputs of int8 layers cost in quality, and what they gain in speed.

    python experiments/int8_forms.py --run=runs/movie_sentiment/seed_0,runs/movie_sentiment/seed_1 [--inputs=dynamic]

Each folder is one of a finished fine-tuning; figures are means over them. Its float model is put into each form on the
same training texts, and all predict the same test texts: weights always have one scale an output channel; inputs have
one a token ("dynamic") or one a layer, chosen in three ways, with and without smoothing (`compress.inputs`,
`compress.smooth`).

How to read it: `quality` is the task's metric on the test texts (`config.QUALITY`), `same` how many of its predictions
are those of the float model, `error` the root mean square of the difference of what the heads give, in units of the
float outputs' standard deviation, `speed` the time of the float model for as many texts as a batch has
at most over that of the form, timed by turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from lepton_jax import hub, infer
from lepton_jax.config import QUALITY, CompressConfig, DataConfig, InferConfig
from lepton_jax.core.fields import build
from lepton_jax.data import splits
from lepton_jax.stages.assessment import KINDS, Judge, encode
from lepton_jax.stages.compression import compare, quantised
from lepton_jax.workdir import read_json

RUN = flags.DEFINE_list("run", None, "Folders of a fine-tuning, of one seed each.", required=True)
INPUTS = flags.DEFINE_list("inputs", ["dynamic", "absmax", "percentile", "mse"], "compress.inputs.")
SMOOTH = flags.DEFINE_float("smooth", 0.5, "SmoothQuant's alpha, where inputs are smoothed.", 0, 1)
BUCKETS = InferConfig(devices=1)  # so that the speed is that of one


def forms() -> list[tuple[Any, float]]:
    """Returns compress.inputs and .smooth of each form."""
    return [(inputs, smooth) for inputs in INPUTS.value for smooth in (0.0, SMOOTH.value)]


def measure(run: str) -> list[dict[str, float]]:
    """Returns the figures of the float model, and of each form."""
    sections, bundle = read_json(Path(run) / "config.json")["config"], hub.load(run)
    task = bundle.card.task.name
    data = splits.load_splits(build(DataConfig, sections["data"], "config.data"), KINDS[task])
    assert bundle.tokenizer is not None
    part = encode(data.test if len(data.test) else data.validation, bundle.tokenizer, bundle.card)
    examples, judge, metric = part.examples, Judge(bundle.card), QUALITY[task]
    exact = infer.from_bundle(bundle, "float32", BUCKETS)
    wanted = exact.outputs(examples.texts, examples.pairs)
    lines = judge.predictions(part, wanted)
    found = [{"quality": 100 * judge.measure(part, wanted)[metric], "speed": 1.0}]
    for inputs, smooth in forms():
        form = CompressConfig(method="int8", inputs=inputs, smooth=smooth)
        int8 = infer.from_bundle(quantised(bundle, form, data.train), "int8", BUCKETS)
        figures, _ = compare(exact, int8, judge, part, lines)
        outputs = int8.outputs(examples.texts, examples.pairs)
        difference = np.concatenate([np.ravel(a - b) for a, b in zip(outputs, wanted, strict=True)])
        error = np.sqrt(np.mean(difference**2)) / np.std(np.concatenate([np.ravel(each) for each in wanted]))
        found.append({"quality": 100 * figures[metric], "speed": figures["speedup"], "error": float(error)})
        if "agreement" in figures:
            found[-1]["same"] = figures["agreement"]
    return found


def main(argv: list[str]) -> None:
    del argv
    runs = [measure(run) for run in RUN.value]
    print("| inputs | smoothed | quality | same | error | speed |\n|---|---|---|---|---|---|")
    for (inputs, smooth), *seeds in zip([("float32", 0.0), *forms()], *runs, strict=True):
        mean = {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
        same = f"{mean['same']:.1%}" if "same" in mean else ""
        error = f"{mean['error']:.3f}" if "error" in mean else ""
        print(f"| {inputs} | {'yes' if smooth else 'no'} | {mean['quality']:.1f} | {same} | {error} "
              f"| {mean['speed']:.2f}x |", flush=True)  # fmt: skip


if __name__ == "__main__":
    app.run(main)
