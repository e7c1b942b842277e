"""Which mesh a run gets where its config says `mesh.shape="auto"`: the simplest one whose compiled step fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from lepton_jax.config import Config
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import Task
from lepton_jax.train.forecast import step_memory
from lepton_jax.train.ramp import part_rows

AUTO = "auto"


def choose(config: Config, task: Task, model: Transformer, devices: Sequence[Any], where: str) -> tuple[str, str]:
    """Returns the description of a mesh, and one line that says why it is that one.

    Candidates come in the order of what they make devices send each other: copies of the model (`data`), then shards of
    its state (`fsdp`), then shards of each layer (`tensor`) and of each row (`sequence`) in place of rows. Each is
    compiled until one fits; where devices do not say what memory they have, the first is taken.

    Args:
      config: the run's config.
      task, model: the objective and the modules, as the run would have them.
      devices: all that the mesh is to have; they may be simulated.
      where: the path of the config, for messages.

    Raises:
      UserError: no layout uses all devices.
    """
    tried = []
    for shape in candidates(config, model, len(devices)):
        found = step_memory(config, sharding.make_mesh(shape, devices), task, model)
        if found.available_gib is None:
            return shape, f"{where}.mesh.shape: {shape}; the devices do not say how much memory they have"
        tried.append((found.needed_gib, shape))
        if found.fits:
            break
    else:
        if not tried:
            raise UserError(
                f"{where}.mesh.shape='auto': {len(devices)} devices share neither {config.train.batch_size} rows "
                f"a step (of {config.evaluate.batch_size} when evaluated), {model.config.num_heads} heads nor "
                f"{config.data.max_length} positions evenly; choose train.batch_size as a multiple of {len(devices)}"
            )
        shape = min(tried)[1]  # the one that comes nearest
    needs = ", ".join(f"{tried_shape} needs {needed:.2f}" for needed, tried_shape in tried)
    return shape, f"{where}.mesh.shape: {shape}; of {found.available_gib:.2f} GiB a device {needs}"


def candidates(config: Config, model: Transformer, devices: int) -> Iterator[str]:
    """Yields descriptions of meshes of so many devices that a run can have, see `choose`."""
    rows = math.gcd(part_rows(config.train) // config.train.accumulate, config.evaluate.batch_size)
    split = dataclasses.asdict(model.config)
    for row_shards in sorted((n for n in range(1, devices + 1) if devices % n == 0 == rows % n), reverse=True):
        rest = devices // row_shards
        tensor = math.gcd(rest, math.gcd(*(split[name] for name in ("num_heads", "intermediate_size", "vocab_size"))))
        sequence = rest // tensor
        if config.data.max_length % sequence:
            continue
        inner = f",tensor={tensor}" * (tensor > 1) + f",sequence={sequence}" * (sequence > 1)
        shared = math.gcd(split["hidden_size"], split["embedding_size"] or split["hidden_size"])
        for axis in ("data", "fsdp"):
            if axis == "data" or (row_shards > 1 and shared % row_shards == 0):
                yield f"{axis}={row_shards}{inner}"
