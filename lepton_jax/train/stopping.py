"""A polite end: SIGTERM, which schedulers and preempted machines send, lets a run save before it stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """A run was asked to stop, and has saved; the same command goes on. `lepton_jax.main` then exits with code 0."""


@contextlib.contextmanager
def watch_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come; inside, the signal does nothing else.

    Outside the main thread, where Python allows no handlers, the signal keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
