"""Huge pages for a process that computes on CPUs.

XLA hands a step's memory back when it is over, so that each one gets its pages anew, a gigabyte of 4 KiB each where
two threads compute: a fifth of the step's time (`experiments/benchmarks/train_step.py`). glibc asks the kernel for
pages of 2 MiB if its tunable `glibc.malloc.hugetlb` says so, which it reads when a process starts and never again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use() -> None:
    """Starts the process anew with huge pages, as the same command and process id, where Linux has them on request.

    Does nothing where that would change nothing, nor where the environment sets `GLIBC_TUNABLES`: an empty one is how
    to go without. To be called before anything else, for what was done before is lost.
    """
    if _TUNABLES in os.environ or not sys.executable or not _on_request():
        return
    os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    """Tells whether a process gets huge pages if it asks, and only then."""
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
