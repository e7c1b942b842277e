"""The train step beside its own matrix products, by dtype, and how long it takes to compile, by depth.

    python experiments/benchmarks/train_step.py [--size=tiny] [--dtypes=float32,bfloat16] [--depths=6,12,24]

The step is the real one: masked LM, 32 x 128 tokens, vocabulary 30,592, 15% of the positions predicted, AdamW, buffers
donated. By turns with it, in the same process, runs every matrix product of its forward and backward pass by itself, in
its own shape and with its operands warm in the caches: their times, each as often as the step has it, add up to
`products`.

How to read it: `of products` is step / products: 1.0 would mean that all else is free. `utilisation` is FLOPs by the
model's shapes over the rate of one large float32 product, what a run logs. Medians over the turns. The second table has
the time from a traced step to a compiled one at growing depth, with the layers in one scan (`model.unroll=1`, the
default) and apart (`unroll=0`), without a cache.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tables
from absl import app, flags

from lepton_jax import cpus
from lepton_jax.config import Config, DataConfig, ModelConfig
from lepton_jax.core import sharding
from lepton_jax.models.sizes import SIZES
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train.forecast import row_flops, step_memory
from lepton_jax.train.state import make_state
from lepton_jax.train.step import make_program
from lepton_jax.train.utilisation import measured_flops

SIZE = flags.DEFINE_enum("size", "tiny", sorted(SIZES), "Named model size.")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Of the computation.")
DEPTHS = flags.DEFINE_list("depths", ["6", "12", "24"], "Layers of the second table.")
STEPS = flags.DEFINE_integer("steps", 15, "Turns that are timed.")
UNROLL = flags.DEFINE_integer("unroll", 0, "As config.model.unroll, for the first table.")
ROWS, LENGTH, VOCABULARY = 32, 128, 30_592
SPECIAL = (0, 1, 2, 3, 4)

Product = tuple[int, int, int, int]  # batch, m, k, n of [batch, m, k] @ [batch, k, n]


def products(config: ModelConfig, scored: int) -> Counter[Product]:
    """Returns how often a step has each matrix product: y = x @ w forward, dx = dy @ w.T and dw = x.T @ dy backward."""
    found: Counter[Product] = Counter()

    def linear(m: int, k: int, n: int, times: int = 1, batch: int = 1) -> None:
        for shape in ((batch, m, k, n), (batch, m, n, k), (batch, k, m, n)):
            found[shape] += times

    D, F, L, H = config.hidden_size, config.intermediate_size, config.num_layers, config.num_heads
    linear(ROWS * LENGTH, D, D, 4 * L)
    linear(ROWS * LENGTH, D, F, (2 if config.gated else 1) * L)
    linear(ROWS * LENGTH, F, D, L)
    linear(LENGTH, D // H, LENGTH, L, ROWS * H)  # queries and keys
    linear(LENGTH, LENGTH, D // H, L, ROWS * H)  # weights and values
    linear(ROWS * scored, D, D)
    linear(ROWS * scored, D, config.vocab_size)
    return found


def seconds(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def setup(config: ModelConfig) -> tuple[Config, Any, MaskedLM, Transformer]:
    """Returns the arguments of `make_program` for a model."""
    run = Config(model=config, data=DataConfig(max_length=LENGTH))
    task = MaskedLM(run.task, VOCABULARY, 4, SPECIAL)
    return run, sharding.make_mesh("data=-1"), task, Transformer(config, "masked_lm")


def time_step(dtype: Any) -> dict[str, Any]:
    """Returns the columns of a line of the first table."""
    config = ModelConfig(vocab_size=VOCABULARY, dtype=dtype, unroll=UNROLL.value, **SIZES[SIZE.value])
    run, mesh, task, model = setup(config)
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
    multiply = jax.jit(jnp.matmul)
    count = products(config, task.scored(LENGTH))
    draw = np.random.default_rng(1)
    operands = {
        (b, m, k, n): tuple(
            jnp.asarray(draw.normal(size=shape if b > 1 else shape[1:]), dtype) for shape in ((b, m, k), (b, k, n))
        )
        for b, m, k, n in count
    }

    def advance() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    first = seconds(advance)  # compiles
    times, own = [], {shape: [] for shape in count}
    for turn in range(1 + STEPS.value):
        times.append(seconds(advance))
        for shape, pair in operands.items():
            multiply(*pair).block_until_ready()  # it warms the caches
            own[shape].append(seconds(lambda pair=pair: multiply(*pair)))
        if turn == 0:  # it warms up
            times.clear()
            own = {shape: [] for shape in count}
    whole = float(np.median(times))
    floor = sum(times_ * float(np.median(own[shape])) for shape, times_ in count.items())
    flops = ROWS * row_flops(task, model, LENGTH)
    device = jax.devices()[0]
    return {
        "machine": f"{device.device_kind}, {platform.machine()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "size, dtype": f"{SIZE.value}, {dtype}",
        "tokens/s": f"{ROWS * LENGTH / whole:,.0f}",
        "step": f"{1e3 * whole:.0f} ms",
        "products": f"{1e3 * floor:.0f} ms",
        "of products": f"{whole / floor:.2f}x",
        "utilisation": f"{flops / whole / measured_flops(2048):.0%}",
        "first step": f"{first:.1f} s",
    }


def time_compilation(depth: int) -> dict[str, Any]:
    """Returns the columns of a line of the second table."""
    found = {}
    for name, unroll in (("scan", 1), ("apart", 0)):
        shape: dict[str, Any] = SIZES[SIZE.value] | {"num_layers": depth}
        jax.clear_caches()
        config = ModelConfig(vocab_size=VOCABULARY, unroll=unroll, **shape)
        found[name] = f"{step_memory(*setup(config)).compile_seconds:.1f} s"
    return {"layers": depth, **found}


def main(argv: list[str]) -> None:
    del argv
    if DTYPES.value:
        tables.show([time_step(dtype) for dtype in DTYPES.value])
    if DEPTHS.value:
        tables.show([time_compilation(int(depth)) for depth in DEPTHS.value])


if __name__ == "__main__":
    cpus.prepare()  # as a run does
    app.run(main)
