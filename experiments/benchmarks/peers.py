"""What the benchmarks against other libraries share: each side in a process of its own, with a Python of its own."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

TORCH = flags.DEFINE_string("torch_python", "", "Python with transformers 5 and PyTorch.")
FLAX = flags.DEFINE_string("flax_python", "", "Python with transformers 4.57.6, JAX and Flax.")
SIDE = flags.DEFINE_string("side", "", "For the processes of this script: which side it is.")
_MARK, _TURN = "RESULT ", "TURN"


def load(name: str) -> Any:
    """Imports what only one side's environment has, or has in another version than the type checker sees."""
    return importlib.import_module(name)


def answer(result: dict[str, Any]) -> None:
    """Hands a side's result, plain JSON, to the script that started it."""
    print(_MARK + json.dumps(result), flush=True)


def wait() -> None:
    """Ends a turn of this side: it goes on once the script gives it the next."""
    print(_TURN, flush=True)
    sys.stdin.readline()


class Peer:
    """One side of a comparison: a script run with `--side`, which works while it has its turn and waits otherwise.

    With short turns, one side after another, all of them have the machine as it is at that time.
    """

    def __init__(self, side: str, python: str, script: str, *arguments: str):
        """Starts nothing yet."""
        self.side, self.seconds = side, list[float]()  # of each turn
        self._command = [python, script, f"--side={side}", *arguments]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the side runs)
        self._process: subprocess.Popen[bytes] | None = None

    def turn(self) -> dict[str, Any] | None:
        """Lets the side work up to its next `wait`, or its `answer`, which is returned."""
        begun = time.perf_counter()
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=self._errors)
        else:
            assert self._process.stdin is not None
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        assert self._process.stdout is not None
        for line in map(bytes.decode, self._process.stdout):
            if line.startswith((_TURN, _MARK)):
                self.seconds.append(time.perf_counter() - begun)
                return json.loads(line.removeprefix(_MARK)) if line.startswith(_MARK) else None
        self._errors.seek(0)
        lines = self._errors.read().decode().strip().splitlines()
        raise SystemExit(f"{self.side}: {lines[-1] if lines else 'no result'}")


def ask(side: str, python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Runs a script as one side, alone, and returns what it answers."""
    peer = Peer(side, python, script, *arguments)
    while (found := peer.turn()) is None:
        pass
    return found
