"""A trace of some steps of a run, for XProf: where a step's time goes, on the devices and between them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from lepton_jax.disk import writing

SKIPPED = 2  # steps after the start: the first one compiles, and the second may wait for data


class Trace:
    """Traces `steps` steps of a run into a folder, from the third one after its start. Used in a `with` statement.

    `tensorboard --logdir=WORKDIR` with the package `xprof` shows it; every process writes its own devices.
    """

    def __init__(self, folder: Path, steps: int, start: int) -> None:
        """Describes the trace; `start` is the step that training goes on from, `steps` may be 0."""
        self._folder, self._first, self._last = folder, start + SKIPPED + 1, start + SKIPPED + steps
        self._running = False

    def __enter__(self) -> Trace:
        return self

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Returns the context of the dispatch of a step, which it names in the trace; starts the trace at its first."""
        if number == self._first <= self._last and not self._running:  # not twice, where a run goes back
            with writing(self._folder):
                jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, outputs: Any) -> str | None:
        """Ends the trace after its last step, whose outputs are waited for; returns a line that says where it is."""
        if not self._running or number < self._last:
            return None
        jax.block_until_ready(outputs)
        self._stop()
        return f"profile: steps {self._first} to {number} are in {self._folder}; tensorboard with xprof shows them"

    def _stop(self) -> None:
        self._running = False
        with writing(self._folder):
            jax.profiler.stop_trace()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:  # the run ended before the trace did
            self._stop()
