"""What a run will need, from its compiled step and without running it: memory a device, and FLOPs."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax.config import Config
from lepton_jax.core import sharding, trees
from lepton_jax.models.flops import forward_flops
from lepton_jax.models.transformer import Transformer, abstract_params
from lepton_jax.tasks import Task
from lepton_jax.train.state import trainable
from lepton_jax.train.step import make_program

_GIB = 2**30
_DOCUMENT = 16  # assumed length of a document that is packed with others


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a step needs, in GiB a device, as the compiler counts it before anything is allocated."""

    state_gib: float  # parameters, optimizer state, and the batch
    temporary_gib: float  # activations, gradients, and what else lives during a step
    needed_gib: float  # both together
    available_gib: float | None  # None: the device does not say
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the step fits; None where that is not known."""
        return None if self.available_gib is None else self.needed_gib <= self.available_gib


@dataclasses.dataclass(frozen=True)
class Forecast(Memory):
    """Figures of one run."""

    parameters: int
    trainable_parameters: int
    flops_per_token: float  # of a step's matrix products, see `forward_flops`; padding counts as tokens


def forecast(config: Config, mesh: Mesh, task: Task, model: Transformer) -> Forecast:
    """Compiles the train step of a run for its devices, and reads off what it needs.

    Args:
      config: the run's config.
      mesh: the devices; they may be simulated.
      task, model: the objective and the modules, as the run would have them.
    """
    params = abstract_params(model)
    shares = jax.tree.map(lambda leaf, free: round(leaf.size * np.mean(free)), params, trainable(config.optim, params))
    return Forecast(
        **vars(step_memory(config, mesh, task, model)),
        parameters=trees.count(params),
        trainable_parameters=sum(map(int, jax.tree.leaves(shares))),
        flops_per_token=row_flops(task, model, config.data.max_length) / config.data.max_length,
    )


def step_memory(config: Config, mesh: Mesh, task: Task, model: Transformer) -> Memory:
    """Returns the memory that the compiled step needs; arguments as of `forecast`."""
    program = make_program(config, mesh, task, model)
    start = time.perf_counter()
    compiled = program.step.lower(program.abstract, abstract_batch(config, mesh, task.num_outputs)).compile()
    seconds = time.perf_counter() - start
    # The sizes are those of one device.
    memory: Any = compiled.memory_analysis()
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    needed = state + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    available = available_bytes(mesh)
    return Memory(
        state_gib=state / _GIB,
        temporary_gib=temporary / _GIB,
        needed_gib=needed / _GIB,
        available_gib=None if available is None else available / _GIB,
        compile_seconds=seconds,
    )


def explain_out_of_memory(error: Exception, config: Config, mesh: Mesh, task: Task, model: Transformer) -> str | None:
    """Returns one line on a step that did not fit and what would make it smaller; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    found = step_memory(config, mesh, task, model)
    there = "" if found.available_gib is None else f" of {found.available_gib:.2f}"
    remedies = ["a smaller train.batch_size", "a larger train.accumulate"]
    if model.config.remat != "full":
        remedies.append("model.remat='full'")
    if model.config.dtype == "float32":
        remedies.append("model.dtype='bfloat16'")
    if mesh.size > 1 and mesh.shape["fsdp"] == 1:
        remedies.append("mesh.shape='fsdp=-1'")
    return (
        f"out of memory: a step needs {found.needed_gib:.2f}{there} GiB a device ({found.state_gib:.2f} for the state, "
        f"{found.temporary_gib:.2f} during a step); less needs {', '.join(remedies)}; --config.dry_run=True "
        f"shows how much"
    )


def available_bytes(mesh: Mesh) -> int | None:
    """Returns the memory of one device of a mesh; of a CPU, its share of the machine's."""
    device = next(iter(mesh.local_mesh.devices.flat))
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mesh.local_mesh.size
    return (device.memory_stats() or {}).get("bytes_limit")


def row_flops(task: Task, model: Transformer, length: int) -> float:
    """Returns the FLOPs that a training step needs for each row of so many positions, see `forward_flops`."""
    return 3 * forward_flops(model, length, task.scored(length))


def abstract_batch(config: Config, mesh: Mesh, num_outputs: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of the largest batches that `data.batches` makes for a run.

    How many documents a packed row has, the data decide; here it is one per `_DOCUMENT` tokens.
    """
    rows, length = config.train.batch_size, config.data.max_length
    kinds: dict[str, Any] = dict.fromkeys(("token_ids", "attention_mask", "positions"), ((rows, length), jnp.int32))
    kinds["weight"] = ((rows,), jnp.float32)
    if config.packs and not config.data.isolate:
        kinds["documents"] = kinds["token_ids"]
    if config.data.pair:
        kinds["token_type_ids"] = kinds["token_ids"]
    texts = (rows, max(length // _DOCUMENT, 1)) if config.packs else (rows,)
    labels = {
        "classification": (texts, jnp.int32),
        "multi_label": ((*texts, num_outputs), jnp.float32),
        "regression": (texts, jnp.float32),
        "token_classification": ((rows, length), jnp.int32),
    }
    if config.task.name in labels:
        kinds["labels"] = labels[config.task.name]
    where = sharding.by_rows(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in kinds.items()}
