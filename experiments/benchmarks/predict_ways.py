"""What each way of computing int8 predictions on a CPU gives: one fine-tuned model, the same tokens, by turns.

    python experiments/benchmarks/predict_ways.py --run=runs/movie_sentiment/seed_0

`--run` is the folder of a finished fine-tuning of one seed. Texts are the run's test texts, and posts to news groups
cut at 512 tokens. Cost: about five minutes on two cores.

How to read it: texts a second, of tokens to logits, the median over rounds, and in parentheses how many times as many
as the first line in the same round. The lines of int8 each change one thing of the line that they name; the last ones
are what was tried and is not the default.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tables
from absl import app, flags

from lepton_jax import hub, infer
from lepton_jax.config import CompressConfig, DataConfig, InferConfig
from lepton_jax.core.fields import build
from lepton_jax.data import sources, splits
from lepton_jax.data.rows import Rows
from lepton_jax.infer.predictor import Predictor
from lepton_jax.stages.compression import quantised
from lepton_jax.workdir import read_json

RUN = flags.DEFINE_string("run", None, "The folder of a fine-tuning, of one seed.", required=True)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each way.", lower_bound=1)
MAX_LENGTH, ANY = 512, 1 << 20
CONFIG = InferConfig(lengths=(16, 24, 32, 48, 64, 96, 128, 192, 256, 384), devices=1)


def in_turn(predictor: Predictor, rows: Rows) -> None:
    """Computes one batch after the other."""
    for chosen in predictor.buckets.batches(rows.lengths):
        predictor.compute(*predictor.pad(rows, chosen))


def ways(bundle: hub.Bundle, train: Any) -> dict[str, Callable[[Rows], Any]]:
    """Returns name -> what computes rows."""
    static = build(CompressConfig, {"method": "int8", "inputs": "percentile", "smooth": 0.5}, "compress")
    forms = {"dynamic": quantised(bundle, CompressConfig(method="int8"), train),
             "static": quantised(bundle, static, train)}  # fmt: skip

    def load(model: hub.Bundle, precision: Any, **fields: Any) -> Predictor:
        return infer.from_bundle(model, precision, dataclasses.replace(CONFIG, **fields))

    dynamic = load(forms["dynamic"], "int8")
    exact, large = load(bundle, "float32", batch_tokens=ANY), load(forms["dynamic"], "int8", batch_tokens=ANY)
    return {
        "float32, 64 rows": lambda rows: in_turn(exact, rows),
        "float32": load(bundle, "float32").run,
        "bfloat16": load(bundle, "bfloat16").run,
        "(a) int8, dynamic, 64 rows": lambda rows: in_turn(large, rows),
        "(b) a, 512 tokens": lambda rows: in_turn(dynamic, rows),
        "(c) b, several batches at once: the default": dynamic.run,
        "(d) c, static inputs": load(forms["static"], "int8").run,
        "c, 256 tokens": load(forms["dynamic"], "int8", batch_tokens=256).run,
        "c, 1,024 tokens": load(forms["dynamic"], "int8", batch_tokens=1024).run,
        "c, 2,048 tokens": load(forms["dynamic"], "int8", batch_tokens=2048).run,
        "c, attention in int8": load(forms["dynamic"], "int8", attention="int8").run,
        "d, attention in int8": load(forms["static"], "int8", attention="int8").run,
    }


def main(argv: list[str]) -> None:
    del argv
    stored = read_json(Path(RUN.value) / "config.json")["config"]["data"]
    data = splits.load_splits(build(DataConfig, stored, "config.data"), "classes")
    bundle = hub.rescaled(hub.load(RUN.value))
    bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, max_length=MAX_LENGTH))
    files = {"test texts": data.test.texts, "posts": sources.load("tfds:newsgroups:test", label=None).some(96).texts}
    reader = infer.from_bundle(bundle)
    encoded = {name: reader.encode(texts).rows for name, texts in files.items()}
    made = ways(bundle, data.train)
    seconds: dict[tuple[str, str], list[float]] = {(way, file): [] for way in made for file in files}
    for turn in range(ROUNDS.value + 1):
        for way, run in made.items():
            for file, rows in encoded.items():
                start = time.perf_counter()
                run(rows)
                if turn:  # the first one compiles
                    seconds[way, file].append(time.perf_counter() - start)
    print(f"JAX {jax.__version__}, {os.cpu_count()} cores")
    first = next(iter(made))
    lines = []
    for way in made:
        line = {"": way}
        for file, rows in encoded.items():
            own = np.array(seconds[way, file])
            ratio = np.median(np.array(seconds[first, file]) / own)
            line[f"{len(rows)} {file}"] = f"{len(rows) / np.median(own):,.0f} ({ratio:.2f}x)"
        lines.append(line)
    tables.show(lines)


if __name__ == "__main__":
    app.run(main)
