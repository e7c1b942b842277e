"""Several processes as one run: how they start, and how they decide things together.

A process is one of several if the `mesh` section, the environment or a cluster that JAX knows says so; in this order:

    mesh.coordinator   JAX_COORDINATOR_ADDRESS                  HOST:PORT of process 0
    mesh.processes     JAX_NUM_PROCESSES or JAX_PROCESS_COUNT   how many there are
    mesh.process       JAX_PROCESS_ID                           which one this is, from 0

Slurm, Open MPI, Kubernetes jobs and Cloud TPU VMs say all three. A process that dies is noticed by JAX, which then
ends the others within 100 seconds and names it; what it was doing is lost back to the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lepton_jax import rendezvous
from lepton_jax.config import MeshConfig
from lepton_jax.core.errors import UserError

T = TypeVar("T")

_DAY = 24 * 60 * 60  # what others may take for, such as preparing data; a process that died ends the wait at once
_ENVIRONMENT = {
    "coordinator": ("JAX_COORDINATOR_ADDRESS",),
    "processes": ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT"),
    "process": ("JAX_PROCESS_ID",),
}
_rounds = itertools.count()


def start(mesh: MeshConfig) -> None:
    """Makes this process one of several, where it is meant to be; otherwise, or when called again, does nothing.

    To be called before anything uses a device. Says on stderr whom it waits for.

    Args:
      mesh: the section of the run's config.

    Raises:
      UserError: an incomplete or impossible description; or others did not come in `mesh.timeout` seconds. In every
        process that is there.
    """
    if jax.distributed.is_initialized():
        return
    found = describe(mesh)
    if found is None:
        return
    coordinator, processes, process = found
    rendezvous.meet(coordinator, processes, process, mesh.timeout)
    try:
        jax.distributed.initialize(
            coordinator, processes, process,
            initialization_timeout=math.ceil(mesh.timeout),
            shutdown_timeout_seconds=100,  # as long as a dead process may go unnoticed
        )  # fmt: skip
    except RuntimeError as error:  # devices are in use, mostly: of a notebook that called this too late
        raise UserError(f"process {process} of {processes}: {str(error).splitlines()[0]}") from error


def describe(mesh: MeshConfig) -> tuple[str, int, int] | None:
    """Returns (HOST:PORT of process 0, number of processes, which one this is); None for a process alone.

    Raises:
      UserError: something of it is missing, or the numbers are impossible.
    """
    if mesh.processes == 1:
        return None
    found: dict[str, Any] = {
        "coordinator": mesh.coordinator or None,
        "processes": mesh.processes or None,
        "process": None if mesh.process < 0 else mesh.process,
    }
    for field, names in _ENVIRONMENT.items():
        name = next((name for name in names if os.environ.get(name)), None)
        if found[field] is None and name is not None:
            text = os.environ[name]
            if field != "coordinator" and not (text.isascii() and text.isdecimal()):
                raise UserError(f"{name}={text!r}: must be a whole number")
            found[field] = text if field == "coordinator" else int(text)
    if None in found.values():
        detected = _detect(found, mesh.timeout)
        found = {name: detected[name] if value is None else value for name, value in found.items()}
    processes, process = found["processes"], found["process"]
    if processes == 1 or found == dict.fromkeys(found):
        return None
    for field, value in found.items():
        if value is None:
            given = ", ".join(f"mesh.{name}={value!r}" for name, value in found.items() if value is not None)
            raise UserError(f"mesh.{field}: is missing beside {given}; set it, or {_ENVIRONMENT[field][0]}")
    if not 0 <= process < processes:
        raise UserError(f"mesh.process={process}: must be from 0 to {processes - 1}, with {processes} processes")
    rendezvous.parse(found["coordinator"])
    return found["coordinator"], processes, process


def _detect(known: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Returns what JAX's own detection of clusters adds to what is known; None for what it does not find."""
    # `jax.distributed.initialize` detects the same, but tells nobody, and it aborts where a process is missing.
    from jax._src.clusters import ClusterEnv

    try:
        with warnings.catch_warnings(action="ignore"):  # of a pod that is no part of a job
            coordinator, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
                known["coordinator"], known["processes"], known["process"], [], None, math.ceil(timeout)
            )
    except Exception as error:  # of a metadata server, a name service, a missing package
        if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
            return known  # likewise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the cluster around this process cannot be read ({reason}); set mesh.coordinator, mesh.processes and "
            f"mesh.process, or mesh.processes=1 for a process alone"
        ) from error
    return {"coordinator": coordinator, "processes": processes, "process": process}


def gather(value: T) -> list[T]:
    """Returns the values of all processes, by their numbers; each must call it, and may pickle its value."""
    if jax.process_count() == 1:
        return [value]
    # This wait may be long, which the exchange below, a collective of the devices, would not stand.
    ocp.multihost.get_barrier_sync_fn()(key=f"lepton_jax:gather_{next(_rounds)}", timeout_ms=_DAY * 1000)
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).ravel()
    room = 1 << int(sizes.max()).bit_length()  # few different sizes: each compiles once
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends the block in all processes alike: an exception that one raises inside, all raise.

    The block itself must not wait for the other processes.

    Raises:
      UserError: of the lowest-numbered process that raised one.
      RuntimeError: another process raised any other exception.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    _share(failure)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """As `together`, but process 0 does the block first, and the others, all at once, after it.

    What it leaves in a cache is there for the others; where they have caches of their own, each fills its own.
    """
    first, failure = jax.process_index() == 0, None
    if not first:
        _share(None)
    try:
        yield
    except Exception as error:
        failure = error
    if first:
        _share(failure)
    _share(failure)


def on_first(function: Callable[[], T]) -> T:
    """Returns in all processes what `function` returns in process 0, which alone calls it; its exceptions likewise."""
    value: Any = None
    with together():
        if jax.process_index() == 0:
            value = function()
    return gather(value)[0]


def require_equal(what: str, value: str) -> None:
    """Raises UserError in all processes where they do not hold the same; `what` names it."""
    values = gather(value)
    other = next((number for number, found in enumerate(values) if found != values[0]), None)
    with together():
        if other is not None:
            raise UserError(f"processes 0 and {other} were started with {what}; give all the same command and files")


def _share(failure: Exception | None) -> None:
    """Raises in all processes what one of them failed with."""
    told = failure if failure is None or isinstance(failure, UserError) else f"{type(failure).__name__}: {failure}"
    failures = gather(told)
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    for number, found in enumerate(failures):
        if isinstance(found, UserError):
            found = failure if number == jax.process_index() and isinstance(failure, UserError) else found
            found.everywhere = True
            raise found
        if found is not None:
            raise RuntimeError(f"process {number} failed ({found})")
