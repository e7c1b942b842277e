"""Tokens per second of the train step, next to the arithmetic floor of the machine.

    python experiments/benchmarks/train_step.py [--size=tiny] [--dtype=float32] [--steps=15]

How to read it: `floor` is the time that the step's matrix products alone would take at the rate of one large product,
measured in the same run by turns with the step; `of floor` is floor / step. The step is the real one: masked LM,
32 x 128 tokens, vocabulary 30,592, 15% of the positions predicted, AdamW, buffers donated. Medians over the turns.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from lepton_jax.config import Config, ModelConfig
from lepton_jax.core import sharding
from lepton_jax.models.sizes import SIZES
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train.state import make_state
from lepton_jax.train.step import make_program

SIZE = flags.DEFINE_enum("size", "tiny", sorted(SIZES), "Named model size.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
STEPS = flags.DEFINE_integer("steps", 15, "Turns that are timed.")
ROWS, LENGTH, VOCABULARY = 32, 128, 30_592
SPECIAL = (0, 1, 2, 3, 4)


def product_flops(config: ModelConfig, rows: int, length: int, predicted: int) -> float:
    """Returns the FLOPs of all matrix products of one step: forward once, backward twice."""
    tokens, hidden = rows * length, config.hidden_size
    layer = 4 * hidden * hidden + (3 if config.gated else 2) * hidden * config.intermediate_size
    attention = 2 * length * hidden  # multiply-adds a token: logits and weighted values
    head = rows * predicted * (hidden * hidden + hidden * config.vocab_size)
    return 3 * 2.0 * (config.num_layers * tokens * (layer + attention) + head)


def seconds(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    del argv
    dtype: Any = DTYPE.value
    config = ModelConfig(vocab_size=VOCABULARY, dtype=dtype, unroll=0, **SIZES[SIZE.value])
    model, run = Transformer(config, "masked_lm"), Config(model=config)
    task = MaskedLM(run.task, VOCABULARY, 4, SPECIAL)
    mesh = sharding.make_mesh("data=-1")
    step, _, optimizer = make_program(run, mesh, task, model)
    state = make_state(model, optimizer, run.optim, mesh, seed=0)
    ids = np.random.default_rng(0).integers(len(SPECIAL), VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    batch = {
        "token_ids": ids,
        "attention_mask": np.ones_like(ids),
        "positions": positions,
        "weight": np.ones(ROWS, np.float32),
    }
    batch = sharding.put_batch(batch, mesh)

    side = 2048
    a = jnp.ones((side, side), config.dtype)
    multiply = jax.jit(jnp.dot)

    def advance() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    first = seconds(advance)  # compiles
    seconds(lambda: multiply(a, a))
    times, products = [], []
    for _ in range(STEPS.value):
        times.append(seconds(advance))
        products.append(seconds(lambda: multiply(a, a)))
    rate = 2.0 * side**3 / float(np.median(products))
    flops = product_flops(config, ROWS, LENGTH, math.ceil(task.config.mask_rate * LENGTH))
    step_seconds, floor = float(np.median(times)), flops / rate
    device = jax.devices()[0]
    print("| machine | jax | size, dtype | tokens/s | step | floor | of floor | product rate | first step |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {device.device_kind}, {platform.machine()}, {os.cpu_count()} cores | {jax.__version__} "
        f"| {SIZE.value}, {DTYPE.value} "
        f"| {ROWS * LENGTH / step_seconds:,.0f} | {1e3 * step_seconds:.0f} ms | {1e3 * floor:.0f} ms "
        f"| {floor / step_seconds:.0%} | {rate / 1e9:,.0f} GFLOP/s | {first:.1f} s |"
    )


if __name__ == "__main__":
    app.run(main)
