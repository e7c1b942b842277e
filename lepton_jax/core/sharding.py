"""The device mesh, and where each array lies on it.

Axes: `data` copies parameters and splits rows; `fsdp` splits rows and also shards parameters and optimizer state
(ZeRO-3); `tensor` splits the matrices of a layer (Megatron); `sequence` splits the positions of a row. Ordered path
rules give a parameter its axes, `constrain` an activation.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lepton_jax.core import trees
from lepton_jax.core.errors import UserError, nearest

AXES = ("data", "fsdp", "tensor", "sequence")
ROW_AXES = ("data", "fsdp")  # the axes over which the rows of a batch are split
Rules: TypeAlias = Sequence[tuple[str, tuple[str | None, ...]]]


def make_mesh(shape: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh of a description such as "data=2,fsdp=4" or "data=-1,tensor=2".

    Args:
      shape: sizes of axes, comma-separated; an axis that is not named has size 1, one may be -1 (what is left).
      devices: the devices; None: all.

    Raises:
      UserError: an unknown axis, a malformed size, or sizes that do not use every device.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    for part in filter(None, shape.replace(" ", "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in sizes:
            raise UserError(f"config.mesh.shape={shape!r}: unknown axis {axis!r}; {nearest(axis, list(AXES))}")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(f"config.mesh.shape={shape!r}: {axis} needs a positive size or -1, such as {axis}=2")
        sizes[axis] = int(size)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f"config.mesh.shape={shape!r}: only one axis may be -1, not {' and '.join(free)}")
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"config.mesh.shape={shape!r}: the sizes must multiply to the {len(devices)} devices there are")
    return Mesh(np.asarray(devices).reshape(*sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the NamedSharding of every leaf, by the first rule that its path matches.

    A rule's axes are aligned with the last axes of an array, so that one rule serves a layer and a stack of
    layers. Scalars, and axes of size 1, are replicated. The paths of optimizer state end in those of parameters.

    Raises:
      UserError: no rule covers an array, or an axis of an array does not divide among the devices of its mesh axis.
    """

    def of(path: str, leaf: Any) -> NamedSharding:
        shape = leaf.shape
        if not shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return replicated(mesh)
        axes = trees.first_match(rules, path)[-len(shape) :]
        axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
        axes = tuple(axis if size > 1 else None for axis, size in zip(axes, shape, strict=True))
        for axis, size in zip(axes, shape, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"config.mesh.shape: {path} has an axis of {size}, which {axis}={mesh.shape[axis]} does not divide"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return trees.map_with_path(of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`, as the rows of a batch are."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts `by_rows` splits."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process's rows of a batch, those of `process_rows`: together they are the global batch."""
    sharding = by_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """Says where an activation lies: one mesh axis, tuple of them, or None for each axis of x. Without a mesh: x."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def spread(table: Any, mesh: Mesh | None) -> Any:
    """Returns a table [V, E] as [row shards, sequence shards, V, E]: a copy for each part of a batch.

    A table that is used twice, by the embeddings and by a tied head, has a gradient from both. Of the copies these add
    up on each device, and are summed over devices once; XLA would otherwise sum each of them.
    Without a mesh the table stays what it is.
    """
    if mesh is None:
        return table
    parts = (row_shards(mesh), mesh.shape["sequence"])
    return jax.tree.map(
        lambda leaf: constrain(
            jnp.broadcast_to(leaf[None, None], (*parts, *leaf.shape)), mesh, ROW_AXES, "sequence", "tensor", None
        ),
        table,
    )


def by_parts(fn: Callable[[jax.Array, Any], jax.Array], x: jax.Array, tables: Any, mesh: Mesh | None) -> jax.Array:
    """Returns fn(x, table) [B, T, ...] for x [B, T, ...]: each part of x with its copy of a table, see `spread`."""
    if mesh is None:
        return fn(x, tables)
    B, T = x.shape[:2]
    rows, pieces = row_shards(mesh), mesh.shape["sequence"]
    if T % pieces:  # every device of a sequence computes all of it
        tables, pieces = jax.tree.map(lambda leaf: leaf[:, :1], tables), 1
    parts = x.reshape(rows, B // rows, pieces, T // pieces, *x.shape[2:]).swapaxes(1, 2)
    y = jax.vmap(jax.vmap(fn))(parts, tables)
    return y.swapaxes(1, 2).reshape(B, T, *y.shape[4:])


def process_rows(mesh: Mesh, batch_size: int) -> list[slice]:
    """Returns which rows of a global batch each process holds, in one copy or more; `by_rows` decides.

    Raises:
      UserError: the rows of a process are not consecutive ones.
    """
    found: dict[int, set[tuple[int, int]]] = {}
    for device, (index,) in by_rows(mesh).devices_indices_map((batch_size,)).items():
        found.setdefault(device.process_index, set()).add(index.indices(batch_size)[:2])
    parts = []
    for process in sorted(found):
        ranges = sorted(found[process])
        for (_, stop), (start, _) in itertools.pairwise(ranges):
            if start != stop:
                raise UserError(f"config.mesh.shape: process {process} would hold the rows {ranges} of a batch, not "
                                f"consecutive ones; order the devices of the mesh by process")  # fmt: skip
        parts.append(slice(ranges[0][0], ranges[-1][1]))
    return parts


def on_this_process(tree: Any) -> Any:
    """Returns a tree of arrays that this process holds in full, on its own devices; all processes must call it."""
    if jax.process_count() == 1:
        return tree

    def fetch(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.is_fully_addressable else jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def place(leaf: jax.Array, where: NamedSharding) -> jax.Array:
    """Places an array that every process holds in full by a sharding over the devices of all of them."""
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
