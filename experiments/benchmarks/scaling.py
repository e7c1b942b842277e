"""What one train step would need on machines that are not here: memory a device, bytes sent, and the least time.

    python experiments/benchmarks/scaling.py [--devices=8,64,512] [--sizes=340M,7B]
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python experiments/benchmarks/scaling.py --topology=v5e:4x4

The real train step of a run (masked LM, bfloat16, 8 rows of 512 tokens a device, AdamW, activations computed again in
the backward pass) is compiled for so many simulated CPU devices, or, where jax[tpu] is installed, by TPU's own compiler
for the chips of a topology, none of which needs to be there. Nothing is run. Cost: a minute or two a line.

How to read it: `state` is what a device holds between steps: parameters, optimizer state, batch. `peak` is the most
that it holds during one; only TPU's compiler says. `sent` are the bytes that a device sends in a step if every
collective runs as a ring, in float32 where CPUs have no bfloat16 collectives and with an all-reduce where they have no
reduce-scatter. The times are the largest of three: FLOPs at the peak rate, reading and writing the state, and sending:
no step is faster, and one is as fast only if all three overlap fully. `warnings` counts "involuntary full
rematerialization".

`python experiments/benchmarks/train_step.py` prints the same prediction for the CPU at hand, `products`, beside the
measured step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags
from jax.experimental import topologies

from lepton_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from lepton_jax.core import sharding, trees
from lepton_jax.core.collectives import collectives
from lepton_jax.models.sizes import SIZES
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train.forecast import abstract_batch, row_flops
from lepton_jax.train.step import make_program
from lepton_jax.train.utilisation import PEAKS

DEVICES = flags.DEFINE_list("devices", ["8", "64", "512"], "Numbers of simulated devices.")
MODELS = flags.DEFINE_list("sizes", ["340M", "7B"], "Which models.")
TOPOLOGY = flags.DEFINE_string("topology", "", "Chips to compile for in place of CPU devices, such as v5e:4x4.")

VOCABULARY, ROWS, LENGTH = 32_768, 8, 512
SHAPES: dict[str, dict[str, Any]] = {
    "340M": SIZES["large"],
    "7B": {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "intermediate_size": 16_384},
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one device, from its maker's data sheet: dense bfloat16 FLOP/s, memory bytes/s, link bytes/s each
    way to all neighbours together, and to devices beyond the first `near`."""

    flops: float
    memory: float
    link: float
    near: int = 10**9
    far_link: float = 0.0

    def seconds(self, flops: float, state: float, sent: list[tuple[int, float]]) -> float:
        """Returns the least time of a step: `sent` has (devices of a group, bytes) of each collective."""
        sending = sum(size / (self.link if group <= self.near else self.far_link) for group, size in sent)
        return max(flops / self.flops, 2 * state / self.memory, sending)


CHIPS = {
    "TPU v5p": Chip(PEAKS["TPU v5p"], 2765e9, 600e9),
    "TPU v6e": Chip(PEAKS["TPU v6 lite"], 1640e9, 448e9),
    "H100": Chip(PEAKS["NVIDIA H100"], 3350e9, 450e9, near=8, far_link=50e9),
}


def layout(size: str, devices: int) -> str:
    """Copies of the small model; shards of the large one, over 64 devices at most."""
    if size == "340M":
        return f"data={devices}"
    return f"fsdp={devices}" if devices <= 64 else f"data={devices // 64},fsdp=64"


@contextlib.contextmanager
def stderr_of_xla() -> Iterator[Any]:
    """Gives a function that returns what XLA, which writes from C++, has said so far."""
    with tempfile.TemporaryFile("w+") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.flush()
            file.seek(0)
            return file.read()

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def line(size: str, devices: list[Any]) -> dict[str, Any]:
    """Compiles one step and returns the columns of its line."""
    model = ModelConfig(vocab_size=VOCABULARY, max_positions=LENGTH, dtype="bfloat16", remat="full", **SHAPES[size])
    rows = ROWS * len(devices)
    config = Config(model=model, data=DataConfig(max_length=LENGTH), train=TrainConfig(batch_size=rows))
    task, shape = MaskedLM(config.task, VOCABULARY, 4, (0, 1, 2, 3, 4)), layout(size, len(devices))
    mesh, transformer = sharding.make_mesh(shape, devices), Transformer(model, "masked_lm")
    program = make_program(config, mesh, task, transformer)
    start = time.perf_counter()
    with stderr_of_xla() as said:
        compiled = program.step.lower(program.abstract, abstract_batch(config, mesh)).compile()
        warnings = said().count("nvoluntary full rematerialization")
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    flops = ROWS * row_flops(task, transformer, LENGTH)
    sent = [(each.group, each.sent) for each in collectives(compiled)]
    state = memory.argument_size_in_bytes
    columns = {
        "model": f"{size} ({trees.count(program.abstract.params) / 1e6:,.0f}M)",
        "devices": len(devices),
        "layout": shape,
        "state": f"{state / 2**30:.2f} GiB",
        "peak": f"{memory.peak_memory_in_bytes / 2**30:.2f} GiB" if TOPOLOGY.value else "",
        "sent": f"{sum(size for _, size in sent) / 1e9:.2f} GB",
        "TFLOP": f"{flops / 1e12:.1f}",
        **{name: f"{1e3 * chip.seconds(flops, state, sent):.0f} ms" for name, chip in CHIPS.items()},
        "warnings": warnings,
        "compiled in": f"{seconds:.0f} s",
    }
    return columns


def main(argv: list[str]) -> None:
    del argv
    if TOPOLOGY.value:
        platform: Any = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value)
        groups = [list(platform.devices)]
    else:
        counts = sorted(map(int, DEVICES.value))
        jax.config.update("jax_num_cpu_devices", counts[-1])
        groups = [jax.devices()[:count] for count in counts]
    for number, (size, devices) in enumerate((size, devices) for size in MODELS.value for devices in groups):
        columns = line(size, devices)
        if number == 0:
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print(f"| {' | '.join(map(str, columns.values()))} |", flush=True)


if __name__ == "__main__":
    app.run(main)
