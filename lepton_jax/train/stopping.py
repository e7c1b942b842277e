"""A polite end: SIGTERM, which schedulers and preempted machines send, lets a run save before it stops."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# The steps of all trainings of this process: the agreement needs numbers that never fall.
_asked = itertools.count()


class Stopped(Exception):
    """A run was asked to stop, and has saved; the same command goes on. `lepton_jax.main` then exits with code 0."""

    everywhere = True  # of several processes all stop, see `core.errors.UserError`


@contextlib.contextmanager
def leave_on_sigterm(message: str) -> Iterator[None]:
    """Ends the process with code 0 and one line when SIGTERM comes; inside `watch_sigterm`, that one is asked.

    It is for what comes before and after training, of which a run repeats no more than it does after any other end. Of
    several processes, or outside the main thread, the signal keeps its effect.
    """
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        os.write(sys.stdout.fileno(), f"{message}\n".encode())  # `print` may be at work already
        os._exit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watch_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come; inside, the signal does nothing else.

    Outside the main thread, where Python allows no handlers, the signal keeps its effect. Of several processes each
    must ask once a step; once the signal has come to one of them, all get the answer yes at the same step. JAX catches
    it there, from the start of a process to its end, and lets them agree in the background.
    """
    if jax.process_count() > 1:
        came_to_one = False

        def ask() -> bool:
            nonlocal came_to_one
            came_to_one |= multihost_utils.reached_preemption_sync_point(next(_asked))
            return came_to_one

        yield ask
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
