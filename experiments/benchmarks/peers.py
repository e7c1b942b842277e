"""What the benchmarks against other libraries share: each side in a process of its own, with a Python of its own."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Sequence
from typing import Any

from absl import flags

TORCH = flags.DEFINE_string("torch_python", "", "Python with transformers 5 and PyTorch.")
FLAX = flags.DEFINE_string("flax_python", "", "Python with transformers 4.57.6, JAX and Flax.")
SIDE = flags.DEFINE_string("side", "", "For the processes of this script: which side it is.")
_MARK = "RESULT "


def load(name: str) -> Any:
    """Imports what only one side's environment has, or has in another version than the type checker sees."""
    return importlib.import_module(name)


def answer(result: dict[str, Any]) -> None:
    """Hands a side's result, plain JSON, to the script that started it."""
    print(_MARK + json.dumps(result), flush=True)


def ask(side: str, python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Runs a script as one side, with `--side`, and returns what it answers."""
    command: Sequence[str] = [python, script, f"--side={side}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        raise SystemExit(f"{side}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no result'}")
    return json.loads(lines[0].removeprefix(_MARK))
