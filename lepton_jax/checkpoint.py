"""Checkpoints behind one thin door: Orbax writes and reads the arrays, a manifest makes them trustworthy.

    FOLDER/200/params/         the parameters, an Orbax item
    FOLDER/200/rest/           everything else of the train state: step, optimizer state, random key
    FOLDER/200/data/           the position of the data, one file a stream
    FOLDER/200/manifest.json   the step, its validation metrics, every array's type, every file's sha256, and its own

Of several processes each writes and reads its own shards of the arrays, in one folder that all of them see; process 0
checks, and all of them hear of what it finds.

Three rules make a run survive being killed at any moment:

1. A step's folder appears by one rename, with its manifest inside, and disappears by one rename. What is half
   written or half deleted has another name, is never listed, and is removed when the folder is next opened to write.
2. Orbax notices no flipped bit and casts silently to another dtype. So every restore first compares the files with
   the manifest's checksums and the wanted arrays with the manifest's types.
   The newest step that passes is where a run goes on; one that does not is set aside as `200.damaged`.
3. Saving happens in the background; if it fails, the next `save`, `wait` or `close` raises a UserError with the cause.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

import lepton_jax.chatter  # noqa: F401
from lepton_jax import manifest as manifests
from lepton_jax import processes
from lepton_jax.config import LOWER_IS_BETTER, CheckpointConfig
from lepton_jax.core.errors import UserError
from lepton_jax.disk import failed_write, writing
from lepton_jax.manifest import DamagedError
from lepton_jax.positions import DataIterator, RestorePositions, SavePositions

State = TypeVar("State")
PyTree = Any

_UNFINISHED = "orbax-checkpoint-tmp"  # Orbax's name for a folder that it is still writing
_DELETED = "deleted"
_DAMAGED = "damaged"

# Orbax has each replica save its part of an array, cut out by a program that is compiled for every shape and device:
# hundreds, where a small model lies on eight. Where a part would have fewer bytes, one replica saves the whole.
_PART = 2**20
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = _PART  # pyright: ignore


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest and the best kept.

    A context manager; leaving it waits for the save in progress. A state is any dataclass that is a pytree and has
    a field `params`, such as `train.state.TrainState`; its arrays may be sharded in any way.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, read_only: bool = False):
        """Opens `folder`, which need not exist.

        Args:
          folder: holds one folder a step.
          config: how many steps to keep, and which metric decides about the best one.
          read_only: changes nothing; for readers of a run that may still be going on. Otherwise the folder is
            created, and what a killed run left half written or half deleted is removed.
        """
        self._folder = folder.absolute()
        self._config = config
        self._read_only = read_only
        self._manifest: dict[str, Any] = {}  # of the step that is being saved
        self._checkpointer = _checkpointer(self._before_commit)
        if not read_only:
            processes.on_first(self._prepare)

    def _prepare(self) -> None:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in (*self._folder.glob(f"*.{_UNFINISHED}*"), *self._folder.glob(f"*.{_DELETED}")):
                shutil.rmtree(leftover)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or jax.process_count() == 1 or getattr(error, "everywhere", False):
            self.close()  # else the others have not come here, and would be waited for

    def save(
        self, step: int, state: Any, data_iterator: DataIterator, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Starts saving a step and returns once the arrays may be changed or donated again.

        Args:
          step: the number of training steps that made `state`.
          state: the train state, of arrays.
          data_iterator: its next batch is the one that `state` has not seen.
          metrics: the validation metrics of `state`; None where it was not evaluated.

        Raises:
          UserError: the step is saved already, or `metrics` lacks the metric that decides about the best step; this
            save could not begin, or the one before it failed.
        """
        if self._read_only:
            raise ValueError(f"{self._folder} was opened to read only")
        self.wait()
        path = self._folder / str(step)
        if path.exists():
            raise UserError(f"{path}: step {step} is saved already; resume from it, or choose another workdir")
        best = self._config.metric
        if metrics is not None and best not in metrics:
            raise UserError(
                f"config.checkpoint.best={best!r}: no validation metric; one of {', '.join(sorted(metrics))}"
            )
        params, rest = _split(state)
        self._manifest = {
            "step": step,
            "metrics": None if metrics is None else {name: float(value) for name, value in metrics.items()},
            "arrays": manifests.describe({"params": params, **rest}),
        }
        with _saving(path):
            self._checkpointer.save(
                path,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    rest=ocp.args.StandardSave(rest),
                    data=SavePositions({n: s for n, s in data_iterator.get_state().items() if n in data_iterator.kept}),
                ),
            )

    def steps(self) -> list[int]:
        """Returns the steps that are completely saved, in increasing order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self._folder.iterdir() if entry.name.isdecimal())

    def latest(self) -> int | None:
        """Returns the newest saved step, None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the saved step with the best validation metric, the first of equals; None without a metric.

        Raises:
          UserError: a damaged manifest.
        """
        sign = 1 if self._config.metric in LOWER_IS_BETTER else -1
        scores = {}
        for step in self.steps():
            metrics = manifests.read(self._folder / str(step), self._advice(step))["metrics"] or {}
            value = metrics.get(self._config.metric, math.nan)
            if not math.isnan(value):
                scores[step] = sign * value
        return min(scores, key=lambda step: (scores[step], step), default=None)

    def restore(self, step: int, abstract_state: State, data_iterator: DataIterator | None = None) -> State:
        """Returns a saved state, and puts the data iterator, if one is given, where it was.

        Args:
          step: one of `steps()`.
          abstract_state: the state as a tree of `jax.ShapeDtypeStruct`; their shardings say where each array goes,
            on any mesh, whatever mesh it was saved from (without a sharding: on the first device).
          data_iterator: made as the saved one was, but for the number of processes; changed in place.

        Raises:
          UserError: no such step; a missing, truncated or altered file; an array that is missing, left over, or of
            another shape or dtype; the position of another iterator. Neither `data_iterator` nor a file has
            been changed then.
        """
        params, rest = _split(abstract_state)
        restored = self._restore(step, {"params": params, "rest": rest}, data_iterator)
        return dataclasses.replace(abstract_state, params=restored["params"], **restored["rest"])  # pyright: ignore

    def restore_newest(
        self, abstract_state: State, data_iterator: DataIterator | None = None
    ) -> tuple[int, State] | None:
        """Returns the newest saved step that is intact, and its state as `restore` does; None where nothing is saved.

        Newer steps that are damaged are set aside with a warning: their folders get another name.

        Raises:
          UserError: every step is damaged, and all are left as they are; or an intact one does not fit, see `restore`.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed(processes.on_first(self.steps)):
            try:
                state = self.restore(step, abstract_state, data_iterator)
            except DamagedError as error:
                damaged[step] = error
                continue
            processes.on_first(lambda step=step: self._set_aside(damaged, step))
            return step, state
        if damaged:
            raise damaged[max(damaged)]
        return None

    def _set_aside(self, damaged: Mapping[int, DamagedError], step: int) -> None:
        for other, error in damaged.items():
            aside = self._folder / f"{other}.{_DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
            with writing(aside):
                (self._folder / str(other)).rename(aside)
            absl.logging.warning("%s; it is set aside as %s, and the run goes on from step %d",
                                 error.args[0].partition(";")[0], aside.name, step)  # fmt: skip

    def restore_params(self, step: int, abstract_params: PyTree) -> PyTree:
        """Returns the parameters of a saved state; as `restore`, for them alone."""
        return self._restore(step, {"params": abstract_params})["params"]

    def wait(self) -> None:
        """Waits until the save in progress is on disk, then deletes the steps that are no longer wanted.

        Raises:
          UserError: the save failed, for whatever reason; the error of Orbax is its cause. Or a step that is no longer
            wanted cannot be deleted.
        """
        with _saving(self._folder / str(self._manifest.get("step"))):
            self._checkpointer.wait_until_finished()
        if not self._read_only:
            with writing(self._folder):
                processes.on_first(self._delete_old)

    def close(self) -> None:
        """Waits as `wait` does, and releases what Orbax holds."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _before_commit(self) -> None:
        manifests.write(_unfinished(self._folder / str(self._manifest["step"])), self._manifest)

    def _delete_old(self) -> None:
        steps = self.steps()
        keep = {*steps[-self._config.keep :], self.best()}
        for step in steps:
            if step not in keep:
                doomed = self._folder / f"{step}.{_DELETED}"
                (self._folder / str(step)).rename(doomed)
                shutil.rmtree(doomed)

    def _restore(
        self, step: int, items: dict[str, PyTree], data_iterator: DataIterator | None = None
    ) -> dict[str, PyTree]:
        self._checkpointer.wait_until_finished()
        steps = processes.on_first(self.steps)
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._folder}: step {step} is not saved; saved: {known}")
        return _restore(self._checkpointer, self._folder / str(step), items, self._advice(step), data_iterator)

    def _advice(self, step: int) -> str:
        """Returns what can be done about a damaged step."""
        others = [other for other in self.steps() if other != step]
        if not others:
            return "no other step is saved: start again in another workdir"
        return f"delete {self._folder / str(step)} to go on from step {max(others)}"


def save_params(folder: Path, params: PyTree) -> None:
    """Saves a tree of parameters alone, of plain arrays and of weights that are registered pytree nodes.

    `folder` gets the item `params` and a manifest, and appears complete or not at all.

    Raises:
      UserError: there is something at `folder` already.
    """
    folder = folder.absolute()
    if processes.on_first(folder.exists):
        raise UserError(f"{folder}: is there already; delete it, or choose another folder")
    manifest = {"step": None, "metrics": None, "arrays": manifests.describe({"params": params})}
    if jax.process_count() > 1:  # Orbax saves an array of one process alone only as numpy's
        params = jax.tree.map(lambda leaf: np.asarray(leaf) if leaf.is_fully_addressable else leaf, params)
    checkpointer = _checkpointer(lambda: manifests.write(_unfinished(folder), manifest))
    with _saving(folder), checkpointer:
        checkpointer.save(folder, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
        checkpointer.wait_until_finished()


def load_params(folder: Path, abstract_params: PyTree) -> PyTree:
    """Returns the parameters that `save_params` wrote.

    Args:
      folder: where they were saved.
      abstract_params: their tree of `jax.ShapeDtypeStruct`, with shardings or, for the first device, without.

    Raises:
      UserError: no such folder, a damaged file, or arrays of other names, shapes or dtypes.
    """
    folder = folder.absolute()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return _restore(checkpointer, folder, {"params": abstract_params}, "save it again")["params"]


def _checkpointer(before_commit: Callable[[], None]) -> ocp.AsyncCheckpointer:
    """Returns an Orbax checkpointer that calls `before_commit` when all files of a checkpoint are complete and
    nothing is left but the rename of its folder to the final name."""
    # A thread that fails to make the folders would leave the others waiting for them until a time-out of 20 minutes.
    options = ocp.options.AsyncOptions(
        post_finalization_callback=before_commit, create_directories_asynchronously=False
    )
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


@contextlib.contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Turns what makes a save fail, an error of any kind that Orbax's threads met, into one that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of the training step whose arrays were to be saved
        raise
    except Exception as error:
        raise failed_write(path, error, "earlier steps are untouched" if path.name.isdecimal() else "") from error


def _unfinished(path: Path) -> Path:
    """Returns the folder that Orbax still writes what will be `path` in."""
    return path.with_name(f"{path.name}.{_UNFINISHED}")


def _split(state: Any) -> tuple[PyTree, dict[str, PyTree]]:
    """Returns the parameters of a state, and its other fields that are part of the pytree."""
    fields = [field.name for field in dataclasses.fields(state) if field.metadata.get("pytree_node", True)]
    return state.params, {name: getattr(state, name) for name in fields if name != "params"}


def _restore(
    checkpointer: ocp.Checkpointer,
    path: Path,
    items: dict[str, PyTree],
    advice: str,
    data_iterator: DataIterator | None = None,
) -> dict[str, PyTree]:
    """Returns the items of a checkpoint, after every check; restores `data_iterator` in place where there is one."""

    def check() -> None:
        manifest = manifests.read(path, advice)
        # The arrays are described by their path in the state, in which the item "rest" is no level of its own.
        wanted = manifests.describe({"params": items["params"], **items.get("rest", {})})
        saved = {
            name: kind for name, kind in manifest["arrays"].items() if "rest" in items or name.startswith("params/")
        }
        manifests.require_match(path, saved, wanted)
        manifests.verify(path, manifest, {*items, *(["data"] if data_iterator is not None else [])}, advice)

    processes.on_first(check)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)

    targets: dict[str, Any] = {
        name: ocp.args.StandardRestore(jax.tree.map(placed, tree)) for name, tree in items.items()
    }
    if data_iterator is not None:
        targets["data"] = RestorePositions()
    restored = checkpointer.restore(path, args=ocp.args.Composite(**targets))
    if data_iterator is not None:
        data_iterator.set_state(restored["data"])
    return restored
