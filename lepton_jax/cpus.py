"""How a process that computes on CPUs starts: with huge pages, and with threads for every simulated device.

XLA hands a step's memory back when it is over, so that each one gets its pages anew, a gigabyte of 4 KiB each where
two threads compute: a fifth of the step's time (`experiments/benchmarks/train_step.py`). glibc asks the kernel for
pages of 2 MiB if its tunable `glibc.malloc.hugetlb` says so, which it reads when a process starts and never again.

XLA gives several simulated devices one pool of threads, as many as there are devices or cores. A sum over devices holds
its thread until the last of them has come, and a device may wait in two sums at once, one of them inside a loop: then
there may be no thread left for the last, and the program stands still for ever. XLA reads `PJRT_NPROC`, the number of
threads, when it makes its devices.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_TUNABLES, _THREADS = "GLIBC_TUNABLES", "PJRT_NPROC"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def prepare() -> None:
    """Sets both up, as the same command and process id started anew where huge pages can be had on request.

    To be called before anything else, for what was done before may be lost. Whatever the environment sets already
    keeps its value: an empty `GLIBC_TUNABLES` is how to go without huge pages.
    """
    spare_threads()
    if _TUNABLES in os.environ or not sys.executable or not _on_request():
        return
    os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def spare_threads() -> None:
    """Asks XLA for four threads a simulated device, where the environment simulates several and does not say how many.

    To be called before anything uses a device.
    """
    flags = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    named = flags[-1] if flags else os.environ.get("JAX_NUM_CPU_DEVICES", "")
    devices = int(named) if named.isdecimal() else 1
    if devices > 1:
        os.environ.setdefault(_THREADS, str(max(4 * devices, os.cpu_count() or 1)))


def _on_request() -> bool:
    """Tells whether a process gets huge pages if it asks, and only then."""
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
