"""Metrics for Weights & Biases, sent by a thread that training never waits for.

A server that does not answer costs a run nothing: what it measures is in metrics.jsonl first, and what W&B could not
send lies in WORKDIR/wandb, for a command that a line on the screen names. WANDB_MODE, WANDB_DIR, WANDB_ENTITY and the
like mean what they always do.
"""

from __future__ import annotations

import importlib
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lepton_jax import processes
from lepton_jax.config import Config, to_dict
from lepton_jax.core.errors import UserError
from lepton_jax.workdir import read_json, write_json

_START_SECONDS = 30.0  # until the server counts as out of reach
_END_SECONDS = 60.0  # that a run waits, at its end, for what is not sent yet
_RECORD = "wandb.json"


def require(project: str, where: str) -> None:
    """Raises UserError, in all processes, where W&B is wanted and cannot be used by the first one.

    Args:
      project: `train.wandb`; empty: it is not wanted.
      where: the config that it is of, such as "config".
    """
    with processes.together():
        if project and jax.process_index() == 0:
            field = f"{where}.train.wandb={project!r}"
            wandb = _package(field)
            offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
            if not offline and not wandb.login(prompt=False, verify=False):
                raise UserError(f"{field}: W&B has no API key; give `wandb login`, or set WANDB_MODE=offline")


def _package(field: str) -> Any:
    try:
        wandb = importlib.import_module("wandb")
        wandb.init  # noqa: B018  # a folder wandb/ of earlier runs, where Python was started, imports too
    except (ImportError, AttributeError) as error:
        raise UserError(f"{field}: needs the package wandb; pip install 'lepton_jax[wandb]'") from error
    return wandb


class WeightsAndBiases:
    """A `Board` that never raises: one run of W&B, the same one when the run of a folder goes on.

    The step is a metric of its own, "step", that all others are drawn over. W&B's counter only grows, and would drop
    what comes again after a run went back; so that is there twice, at one step.
    """

    def __init__(self, workdir: Path, config: Config, note: Callable[[str], None]) -> None:
        """Begins or resumes the W&B run of a folder; returns before that is done.

        Args:
          workdir: the run's folder, which names it and keeps its W&B id in wandb.json.
          config: the run's, for W&B to show; `train.wandb` is the project.
          note: prints a line; it is called by another thread.

        Raises:
          UserError: the package is missing, or the id cannot be written.
        """
        self._wandb = _package("config.train.wandb")
        self._note = note
        record = workdir / _RECORD
        if not record.exists():
            write_json(record, {"id": secrets.token_hex(8)})
        self._settings: dict[str, Any] = {
            "project": config.train.wandb,
            "id": read_json(record)["id"],
            "name": str(workdir)[-128:],  # as many characters as W&B takes
            "config": to_dict(config),
            "dir": os.environ.get("WANDB_DIR") or str(workdir),
            "resume": "allow",
            "reinit": "create_new",  # the others of this process, a notebook's, stay what they are
        }
        self._tasks: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        self._tasks.put(lambda run: run.log({"step": step, **values}))

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Gives the W&B run the numbers and words of a summary.json, "finetune.f1" as "finetune/f1"."""
        plain = {
            name.replace(".", "/"): value for name, value in summary.items() if isinstance(value, (int, float, str))
        }
        self._tasks.put(lambda run: run.summary.update(plain))

    def forget(self, step: int) -> None:
        """See `Board`; nothing can be taken back, see the class."""

    def flush(self) -> None:
        """See `Board`; training does not wait for W&B."""

    def close(self, failed: bool = False) -> None:
        """See `Board`; waits for what is not sent yet, but not for long."""
        self._tasks.put(lambda run: run.finish(exit_code=int(failed)))
        self._tasks.put(None)
        self._thread.join(_START_SECONDS + _END_SECONDS)
        if self._thread.is_alive():
            self._note("W&B does not answer and is left behind; metrics.jsonl has everything")

    def _work(self) -> None:
        """Does what is asked for, one after the other; after a failure nothing any more."""
        tasks = iter(self._tasks.get, None)
        try:
            run = self._begin()
            for task in tasks:
                task(run)
        except Exception as error:
            self._note(f"W&B has failed ({_line(error)}); metrics.jsonl has everything")
            for _ in tasks:
                pass

    def _begin(self) -> Any:
        """Returns the run of W&B; where the server cannot be reached, one that only writes files."""
        limits = {"init_timeout": _START_SECONDS, "finish_timeout": _END_SECONDS, "console": "off", "silent": True}
        try:
            run = self._wandb.init(**self._settings, settings=limits)
        except Exception as error:
            self._note(f"W&B cannot be reached ({_line(error)})")
            # The package holds the id of a run that it could not begin.
            own = {"id": f"{self._settings['id']}-{secrets.token_hex(4)}", "mode": "offline"}
            run = self._wandb.init(**self._settings | own, settings=limits)
        run.define_metric("*", step_metric="step")
        if run.offline:
            self._note(f"W&B: offline; `wandb sync --id={self._settings['id']} {Path(run.dir).parent}` sends it")
        elif run.url:
            self._note(f"W&B: {run.url}")
        return run


def conclude(workdir: Path, config: Any, summary: Mapping[str, Any]) -> None:
    """Gives the W&B run that a folder has, if it has one, the summary of what it achieved."""
    if isinstance(config, Config) and config.train.wandb and (workdir / _RECORD).exists():
        board = WeightsAndBiases(workdir, config, print)
        board.conclude(summary)
        board.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
