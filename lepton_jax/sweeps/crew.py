"""Workers: processes that do one run after the other.

A run has a process to itself while it lasts, so that whatever ends that process ends this run alone. The next run finds
JAX loaded, and what was compiled for equal shapes in the compilation cache. This module starts no device: on a GPU or
TPU those belong to the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lepton_jax.core.errors import UserError

State = Literal["done", "failed", "stopped"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: "done", "failed" with the reason, or "stopped", asked to and saved."""

    state: State
    reason: str = ""


class Worker:
    """One process, started with its first run and anew after it died."""

    def __init__(self, gpu: str = ""):
        """Describes it; `gpu` is the one that it sees, in the manner of CUDA_VISIBLE_DEVICES; empty: all there are."""
        self._gpu = gpu
        self._process: Any = None
        self._pipe: Any = None
        self._log = Path()
        self._stopping = False
        self.job: Any = None  # of its caller; None: it is idle

    def start(self, job: Any, config: Any, folder: Path, log: Path) -> None:
        """Begins a run in a folder; what it prints goes to the end of a file."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._gpu))
            self._process.start()
            theirs.close()
        self.job, self._log, self._stopping = job, log, False
        self._pipe.send((config, str(folder), str(log)))

    def stop(self) -> None:
        """Asks the run to save and to stop; its outcome comes as any other does."""
        if self._process is not None and self._process.is_alive():
            self._stopping = True
            os.kill(self._process.pid, signal.SIGTERM)

    def outcome(self) -> Outcome:
        """Returns how the run ended; to be called when `wait` has named the worker. It is idle then."""
        try:
            found = Outcome(*self._pipe.recv())
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            note = ", which the kernel sends when memory runs out" if code == -signal.SIGKILL else ""
            asked = code == 0 or (
                self._stopping and code == -signal.SIGTERM
            )  # before it trains, it has nothing to save
            found = Outcome("stopped") if asked else Outcome("failed", f"its process {how}{note}; see {self._log}")
            self._process = None
        self.job = None
        return found

    def close(self) -> None:
        """Ends the process, if there is one; a run in it gets the time to save."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        if self.job is not None:
            self.stop()
        self._process.join()
        self._process = self.job = None

    @property
    def pipe(self) -> Any:
        return self._pipe


def wait(workers: Sequence[Worker], seconds: float) -> list[Worker]:
    """Returns those whose run has ended, after so many seconds at most."""
    busy = {worker.pipe: worker for worker in workers if worker.job is not None}
    if not busy:
        time.sleep(seconds)
        return []
    return [busy[pipe] for pipe in multiprocessing.connection.wait(list(busy), seconds)]  # type: ignore[index]


def run_alone(config: Any, folder: str | Path) -> Outcome:
    """Does a run in this process, unless another one is at it or has done it; returns how it ended."""
    from lepton_jax import processes, stages
    from lepton_jax.config import runs
    from lepton_jax.data.cache import locked
    from lepton_jax.train.stopping import Stopped, leave_on_sigterm

    folder = Path(folder)
    try:
        with locked(folder), leave_on_sigterm(f"{folder}: stopped by SIGTERM; the same command goes on"):
            processes.start(runs(config)[0][1].mesh)
            stages.run(config, folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return Outcome("failed", str(error))
    except Stopped as stopped:
        print(stopped)
        return Outcome("stopped", str(stopped))
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        return Outcome("failed", f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__)
    return Outcome("done")


def _serve(pipe: Any, gpu: str) -> None:
    """Does the runs that come through a pipe, in a process of its own."""
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, to all: the one who gives the work decides
    from absl import logging

    logging.set_verbosity(logging.WARNING)
    while True:
        try:
            work = pipe.recv()
        except EOFError:  # the other side is gone
            return
        if work is None:
            return
        config, folder, log = work
        with open(log, "a", encoding="utf-8") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
        outcome = run_alone(config, folder)
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send(dataclasses.astuple(outcome))
