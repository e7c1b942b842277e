"""Does a run survive `kill -9` at any moment, and end as if nothing had happened?

    python experiments/kill_soak.py --workdir=runs/kill_soak [--kills=50] [--seed=0]

One run trains undisturbed. The same command in another folder is killed at a random moment, in the midst of start-up,
steps, or the write of a checkpoint (they are frequent), and given again, `--kills` times; then it may finish. Cost:
about 15 seconds a kill on two cores.

How to read it: `steps lost` are those that a kill undid, at most the ones since the last checkpoint that was complete;
kills `while saving` left a half-written or half-deleted one behind. `as undisturbed` compares every logged metric and
every parameter of both runs, bit for bit. A kill that the command does not survive ends the script with its error.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from lepton_jax import hub
from lepton_jax.train.logging import read_metrics

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of both runs.", required=True)
KILLS = flags.DEFINE_integer("kills", 50, "How often the second run is killed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
ROOT = Path(__file__).parent.parent
EVERY = 10
RECIPE = {
    "data.train": "tfds:movie_sentiment", "data.max_length": 32, "data.tokenizer_size": 2000, "train.log_every": 1,
    "train.batch_size": 16, "optim.warmup_steps": 20, "checkpoint.every": EVERY, "checkpoint.keep": 2,
    "evaluate.every": 200,
}  # fmt: skip


def command(folder: Path, steps: int) -> list[str]:
    """Returns the command of a run."""
    fields = [f"--config.{name}={value}" for name, value in (RECIPE | {"train.steps": steps}).items()]
    recipe = ROOT / "configs" / "pretrain.py"
    return [sys.executable, "-m", "lepton_jax.main", f"--config={recipe}:nano", f"--workdir={folder}", *fields]


def newest(folder: Path) -> int:
    """Returns the newest complete checkpoint of a run, 0 where there is none."""
    return max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns what a run logged, but for its speed."""
    lines = read_metrics(folder)
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def main(argv: list[str]) -> None:
    del argv
    steps = 200 * KILLS.value
    straight, killed = Path(WORKDIR.value) / "straight", Path(WORKDIR.value) / "killed"
    start = time.perf_counter()
    subprocess.run(command(straight, steps), check=True, stdout=subprocess.DEVNULL)
    longest = min(time.perf_counter() - start, 14.0)
    moments, lost, saving = random.Random(SEED.value), [], 0
    while len(lost) < KILLS.value:
        running = subprocess.Popen(command(killed, steps), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = running.communicate(timeout=moments.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.communicate()
        else:
            if running.returncode:
                raise SystemExit(f"kill {len(lost) + 1}: the run failed before it, with {errors[-500:]!r}")
            break  # a fast machine: it is complete
        logged = read_metrics(killed) if (killed / "metrics.jsonl").exists() else []
        lost.append(max((line["step"] for line in logged), default=0) - newest(killed))
        saving += any(not path.name.isdecimal() for path in killed.glob("checkpoints/*"))
        print(f"kill {len(lost)}: at step {newest(killed) + lost[-1]}, {lost[-1]} lost", flush=True)
    subprocess.run(command(killed, steps), check=True, stdout=subprocess.DEVNULL)
    one, other = (jax.tree.leaves(hub.load(folder).params) for folder in (straight, killed))
    same = metrics(straight) == metrics(killed) and all(map(np.array_equal, one, other))
    columns = {
        "kills": len(lost),
        "while saving": saving,
        "steps lost, mean": f"{np.mean(lost):.0f}",
        "steps lost, most": max(lost),
        "steps between checkpoints": EVERY,
        "as undisturbed": "yes" if same else "NO",
    }
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n| {' | '.join(map(str, columns.values()))} |")


if __name__ == "__main__":
    app.run(main)
