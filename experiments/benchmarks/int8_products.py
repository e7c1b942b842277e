"""Products of int8 by int8 beside floats and beside qwix, alone and in attention.

    python experiments/benchmarks/int8_products.py [--tables=layers,attention] [--seconds=4]

The shapes are MiniLM's: its three kinds of layers and its vocabulary, for a batch of 32 x 128 tokens and for one text.
`dynamic` and `static` are `core.weights.Int8.dot`, which rounds its inputs, multiplies and scales back; `bare` is
`lax.dot_general` over integers that are there already, int32 out. With qwix (`pip install qwix`) its `quantize` and
`dot_general` do the same as ours in two more columns. All sides of a line run by turns in one process.

How to read it: the first number of a line is the median time of the float32 product; the others are how many times as
fast a side is as the float32 product of the same turn, a median over turns. `apart` is the largest difference of
dynamic outputs of qwix and ours, `error` the largest one between ours and float32, both in units of the float32
outputs' standard deviation. The second table has attention, all of `models.attention.attention` with padding, in floats
and by its backend "int8".
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tables
from absl import app, flags
from jax import lax

from lepton_jax import cpus
from lepton_jax.core.weights import LARGEST, quantize
from lepton_jax.models.attention import attention

TABLES = flags.DEFINE_list("tables", ["layers", "attention"], "Which tables.")
SECONDS = flags.DEFINE_float("seconds", 4.0, "For the turns of a line.")
SCORED = 20  # positions of a text that a masked language model scores
LAYERS = [
    (texts, rows, inputs, outputs)
    for texts in (32, 1)
    for rows, inputs, outputs in ((128, 384, 384), (128, 384, 1536), (128, 1536, 384), (SCORED, 384, 30_522))
]
ATTENTION = [(32, 128, 12, 32), (32, 128, 12, 64), (1, 128, 12, 32), (1, 128, 12, 64)]

Side = tuple[Callable[..., jax.Array], tuple[Any, ...]]


def ratios(shape: str, sides: dict[str, Side]) -> dict[str, Any]:
    """Returns the columns of a line that hold times; the first side is float32."""
    turns: list[list[float]] = []
    for fn, arguments in sides.values():
        fn(*arguments).block_until_ready()  # it compiles
    end = time.perf_counter() + SECONDS.value
    while len(turns) < 5 or time.perf_counter() < end:
        seconds = []
        for fn, arguments in sides.values():
            start = time.perf_counter()
            fn(*arguments).block_until_ready()
            seconds.append(time.perf_counter() - start)
        turns.append(seconds)
    own = np.asarray(turns)
    faster = np.median(own[:, :1] / own, axis=0)
    first, *others = sides
    return {"shape": shape, first: f"{1e3 * np.median(own[:, 0]):.2f} ms"} | {
        name: f"{ratio:.2f}x" for name, ratio in zip(others, faster[1:], strict=True)
    }


def qwix_sides(x: jax.Array, w: jax.Array, bound: float) -> dict[str, Side]:
    """Returns what qwix does in place of our two columns; nothing without it."""
    if importlib.util.find_spec("qwix") is None:
        return {}
    import qwix  # pyright: ignore[reportMissingImports]

    weight = jax.jit(lambda w: qwix.quantize(w, jnp.int8, channelwise_axes=[1]))(w)
    numbers = (((1,), (0,)), ((), ()))

    def dynamic(x: jax.Array, weight: Any) -> jax.Array:
        return qwix.dot_general(qwix.quantize(x, jnp.int8, channelwise_axes=[0]), weight, numbers)

    def static(x: jax.Array, weight: Any) -> jax.Array:
        rounded = qwix.quantize(x, jnp.int8, calibration_method=f"fixed,{-bound},{bound}")
        return qwix.dot_general(rounded, weight, numbers)

    return {"qwix dynamic": (jax.jit(dynamic), (x, weight)), "qwix static": (jax.jit(static), (x, weight))}


def layer(rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """Returns the columns of a line of the first table."""
    draw = np.random.default_rng(0)
    x, w = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((rows, inputs), (inputs, outputs)))
    bound = float(jnp.abs(x).max())
    weight = quantize(w, axis=-2)
    static = type(weight)(weight.values, weight.scale, step=jnp.full((1, 1), bound / LARGEST))
    half = tuple(array.astype(jnp.bfloat16) for array in (x, w))
    multiply = jax.jit(lambda x, w: w.dot(x))
    sums = jax.jit(partial(lax.dot_general, dimension_numbers=(((1,), (0,)), ((), ())),
                           preferred_element_type=jnp.int32))  # fmt: skip
    sides: dict[str, Side] = {
        "float32": (jax.jit(jnp.matmul), (x, w)),
        "bfloat16": (jax.jit(jnp.matmul), half),
        "dynamic": (multiply, (x, weight)),
        "static": (multiply, (x, static)),
        "bare": (sums, (quantize(x, axis=-1).values, weight.values)),
        **qwix_sides(x, w, bound),
    }
    outs = {name: np.asarray(fn(*arguments), np.float32) for name, (fn, arguments) in sides.items()}
    spread = outs["float32"].std()
    line = ratios(f"{rows:,} x {inputs:,} x {outputs:,}", sides)
    line["error"] = f"{np.abs(outs['dynamic'] - outs['float32']).max() / spread:.3f}"
    if "qwix dynamic" in outs:
        line["apart"] = f"{np.abs(outs['dynamic'] - outs['qwix dynamic']).max() / spread:.3f}"
    return line


def attend(texts: int, length: int, heads: int, size: int) -> dict[str, Any]:
    """Returns the columns of a line of the second table."""
    draw = np.random.default_rng(0)
    qkv = [jnp.asarray(draw.normal(size=(texts, length, heads, size)), jnp.float32) for _ in range(3)]
    segments = jnp.asarray(np.arange(length)[None, :] < draw.integers(length // 2, length + 1, (texts, 1)), jnp.int32)
    half = [x.astype(jnp.bfloat16) for x in qkv]
    fns = {name: jax.jit(partial(attention, rows="padded", backend=name)) for name in ("xla", "int8")}
    sides: dict[str, Side] = {
        "float32": (fns["xla"], (*qkv, segments)),
        "bfloat16": (fns["xla"], (*half, segments)),
        "int8": (fns["int8"], (*qkv, segments)),
    }
    exact, found = (
        np.asarray(sides[name][0](*sides[name][1]))[np.asarray(segments) > 0] for name in ("float32", "int8")
    )
    line = ratios(f"{texts} x {length}, {heads} heads of {size}", sides)
    return line | {"error": f"{np.abs(found - exact).max() / exact.std():.3f}"}


def main(argv: list[str]) -> None:
    del argv
    device = jax.devices()[0]
    qwix = f"qwix {version('qwix')}" if importlib.util.find_spec("qwix") else "qwix is not installed: left out"
    print(f"{device.device_kind}, {platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
          f"JAX {jax.__version__}, {qwix}\n")  # fmt: skip
    if "layers" in TABLES.value:
        tables.show([layer(texts * rows, inputs, outputs) for texts, rows, inputs, outputs in LAYERS])
    if "attention" in TABLES.value:
        tables.show([attend(*shape) for shape in ATTENTION])


if __name__ == "__main__":
    cpus.prepare()  # as a run does
    app.run(main)
