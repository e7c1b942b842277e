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
import subprocess
import time
from pathlib import Path

import numpy as np
import soak
from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of both runs.", required=True)
KILLS = flags.DEFINE_integer("kills", 50, "How often the second run is killed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def main(argv: list[str]) -> None:
    del argv
    steps = 200 * KILLS.value
    straight, killed = Path(WORKDIR.value) / "straight", Path(WORKDIR.value) / "killed"
    start = time.perf_counter()
    subprocess.run(soak.pretrain(straight, steps), check=True, stdout=subprocess.DEVNULL)
    longest = min(time.perf_counter() - start, 14.0)
    moments, lost, saving = random.Random(SEED.value), [], 0
    while len(lost) < KILLS.value:
        command = soak.pretrain(killed, steps)
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = running.communicate(timeout=moments.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
        else:
            if running.returncode:
                raise SystemExit(f"kill {len(lost) + 1}: the run failed before it, with {errors[-500:]!r}")
            break  # a fast machine: it is complete
        lost.append(soak.logged(killed) - soak.newest(killed))
        saving += any(not path.name.isdecimal() for path in killed.glob("checkpoints/*"))
        print(f"kill {len(lost)}: at step {soak.newest(killed) + lost[-1]}, {lost[-1]} lost", flush=True)
    subprocess.run(soak.pretrain(killed, steps), check=True, stdout=subprocess.DEVNULL)
    columns = {
        "kills": len(lost),
        "while saving": saving,
        "steps lost, mean": f"{np.mean(lost):.0f}",
        "steps lost, most": max(lost),
        "steps between checkpoints": soak.EVERY,
        "as undisturbed": "yes" if soak.same(straight, killed) else "NO",
    }
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n| {' | '.join(map(str, columns.values()))} |")


if __name__ == "__main__":
    app.run(main)
