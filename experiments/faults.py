"""What does a run survive, how many steps does it lose, and does it end as if nothing had happened?

    python experiments/faults.py --workdir=runs/faults [--times=5] [--seed=0] [--fault=NAME ...]

One run trains undisturbed. For every fault the same command runs in a folder of its own, where it meets the fault
`--times` times, at random moments and places, and is given again each time; then it may finish. Cost: about 20 seconds
a fault and time on two cores, so a quarter of an hour for five times.

Survived means: a kill, a damaged checkpoint and a leftover do not keep the next command from going on, damage with a
warning that names the file; SIGTERM ends with code 0; a disk that is full or read-only ends the run with one line that
says so and code 2, and the next command goes on. `steps lost` are logged ones that are repeated (for a batch that is
not finite: updates left out). `ends as undisturbed` compares every logged metric and every parameter, bit for bit.

Where the system lets it, the runs have a small disk of their own (a tmpfs in a mount namespace), which is filled, and
which is mounted read-only under a run that starts. Elsewhere a limit on the size of files takes the place of the full
disk. Under a run that is training, folders become read-only by their permissions (root first loses its privilege to
ignore them), since no system takes write access from a mount that has files open. The first line says what was used.
`kill_soak.py` has the first fault alone, with more figures.
"""

from __future__ import annotations

import csv
import ctypes
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soak
from absl import app, flags, logging

from lepton_jax.data import sources
from lepton_jax.train.logging import read_metrics

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
TIMES = flags.DEFINE_integer("times", 5, "How often each fault is tried.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments and places.")
FAULT = flags.DEFINE_multi_string("fault", [], "Only this one; may be repeated.")
MOUNTS = os.environ.get("LEPTON_JAX_FAULTS_MOUNTS") == "1"
DISK_MIB, SECONDS, PATIENCE = 256, 3.0, 180.0
SMALL_REGRESSION = {
    "task.name": "regression", "checkpoint.best": "loss", "data.max_length": 32, "data.tokenizer_size": 1000,
    "model.hidden_size": 32, "model.num_heads": 2, "model.num_layers": 1, "train.batch_size": 16, "train.steps": 20,
    "train.log_every": 1, "optim.warmup_steps": 5,
}  # fmt: skip


class NotSurvived(Exception):
    """What a run did in place of what it should."""


class Complete(Exception):
    """A fast machine: the run came to its end before its fault."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotSurvived(otherwise)


class Run:
    """A folder, and the command that is given in it again and again."""

    def __init__(self, folder: Path, steps: int, moments: random.Random):
        self.folder, self.moments, self.checkpoints = folder, moments, folder / "checkpoints"
        self._command = soak.pretrain(folder, steps)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def train(self) -> None:
        """Starts, and returns at a random moment after the first new checkpoint."""
        self.start()
        there, deadline = set(soak.steps(self.folder)), time.monotonic() + PATIENCE
        # A damaged newest step is set aside first: what is new is a step that was not there and is not the damaged one.
        while not set(soak.steps(self.folder)) - there:
            if self._process.poll() is not None:
                code, errors = self.end()
                raise Complete if code == 0 else NotSurvived(f"code {code} before the fault: {errors[-500:]}")
            expect(time.monotonic() < deadline, "no checkpoint in time")
            time.sleep(0.01)
        time.sleep(self.moments.uniform(0, SECONDS))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> str:
        """Sends SIGTERM, which must lose nothing; returns what the run wrote to stderr."""
        self._process.terminate()
        code, errors = self.end()
        if (self.folder / "summary.json").exists():
            raise Complete
        expect(code == 0, f"code {code} after SIGTERM: {errors[-500:]}")
        expect(self.lost() == 0, f"SIGTERM lost {self.lost()} steps")
        return errors

    def end(self) -> tuple[int, str]:
        """Returns the exit code and stderr of a run that ends by itself."""
        try:
            _, errors = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NotSurvived("it hangs") from None
        return self._process.returncode, errors

    def refused(self, *causes: str) -> None:
        """Waits for the run to stop for one of the causes, in one line."""
        code, errors = self.end()
        line = errors.startswith("lepton_jax: error: ") and errors.count("\n") == 1
        expect(code == 2 and line and any(cause in errors for cause in causes), f"code {code}: {errors[-500:]}")

    def trains(self) -> bool:
        return self._process.poll() is None

    def limit_files(self, size: int) -> None:
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def lost(self) -> int:
        return soak.logged(self.folder) - soak.newest(self.folder)


def _obey_permissions() -> None:
    """Takes from the processes that root starts the privilege to write where permissions forbid it."""
    drop, override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    ctypes.CDLL(None).prctl(drop, override, 0, 0, 0)


# Each fault is met once in a folder whose run is stopped, and leaves it so. It returns the steps that are lost.


def kill(run: Run) -> int:
    run.start()
    time.sleep(run.moments.uniform(0.5, 12.0))
    run.kill()
    if (run.folder / "summary.json").exists():
        raise Complete
    return run.lost()


def sigterm(run: Run) -> int:
    run.train()
    run.stop()
    return 0


def damage(harm: Callable[[Path, random.Random], None]) -> Callable[[Run], int]:
    """Returns the fault that `harm` does to a file of the newest checkpoint: of its arrays, position or manifest."""

    def fault(run: Run) -> int:
        step = soak.newest(run.folder)
        part = run.checkpoints / str(step) / run.moments.choice(["params", "rest", "data", "manifest.json"])
        victim = run.moments.choice(sorted(path for path in [part, *part.rglob("*")] if path.is_file()))
        harm(victim, run.moments)
        run.train()
        errors = run.stop()
        found = re.search(rf"set aside as {step}\.damaged, and the run goes on from step (\d+)", errors)
        expect(str(victim) in errors and found is not None, f"{victim} was not recognised: {errors[-500:]}")
        return step - int(found.group(1)) if found else 0

    return fault


def flip(file: Path, places: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[places.randrange(len(data))] ^= 1 << places.randrange(8)
    file.write_bytes(data)


def truncate(file: Path, places: random.Random) -> None:
    os.truncate(file, places.randrange(file.stat().st_size))


def remove(file: Path, places: random.Random) -> None:
    del places
    file.unlink()


def leftovers(run: Run) -> int:
    """What a killed run may leave: a step half written, one half deleted."""
    step, halves = soak.newest(run.folder), []
    for name in (f"{step + 1}.orbax-checkpoint-tmp", f"{step - 1}.deleted"):
        halves.append(shutil.copytree(run.checkpoints / str(step), run.checkpoints / name))
        for file in sorted(path for path in halves[-1].rglob("*") if path.is_file()):
            if run.moments.random() < 0.5:
                file.unlink()
    run.train()
    errors = run.stop()
    expect(errors == "" and not any(half.exists() for half in halves), f"leftovers stay: {errors[-500:]}")
    return 0


def full_disk(run: Run) -> int:
    run.train()
    step = run.checkpoints / str(soak.newest(run.folder))
    sizes = [path.stat().st_size for path in step.rglob("*") if path.is_file()]
    filler = Path(WORKDIR.value) / "disk" / "filler"
    if MOUNTS:
        left = run.moments.randrange(sum(sizes))
        with open(filler, "wb") as file:
            while run.trains():  # what the run deletes is taken as well
                room = shutil.disk_usage(filler.parent).free - left
                if room > 0:
                    with suppress(OSError):  # the run was faster, and took it
                        os.posix_fallocate(file.fileno(), filler.stat().st_size, room)
                time.sleep(0.01)
        filler.unlink()
        run.refused("No space left on device")
    else:
        run.limit_files(run.moments.randrange(max(sizes)))
        run.refused("File too large")
    return run.lost()


def read_only_at_start(run: Run) -> int:
    with _mounted_read_only(run.folder) if MOUNTS else _without_permission(run.folder):
        run.start()
        run.refused("Read-only file system", "Permission denied")
    expect(run.lost() == 0, "steps were lost")
    return 0


def read_only_while_training(run: Run) -> int:
    run.train()
    with _without_permission(run.checkpoints):
        run.refused("Permission denied")
    return run.lost()


@contextmanager
def _mounted_read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def _without_permission(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


FAULTS = {
    "kill -9": kill,
    "SIGTERM": sigterm,
    "a bit of the newest checkpoint flipped": damage(flip),
    "a file of it truncated": damage(truncate),
    "a file of it missing": damage(remove),
    "half-written and half-deleted steps": leftovers,
    "full disk while training": full_disk,
    "read-only folder at the start": read_only_at_start,
    "read-only folder while training": read_only_while_training,
}
NOT_FINITE = "a batch that is not finite"


def row(name: str, tried: int, lost: list[int], end: str) -> str:
    mean, most = (f"{np.mean(lost):.1f}", max(lost)) if lost else ("", "")
    return f"| {name} | {tried} | {len(lost)} | {mean} | {most} | {end} |"


def disturb(name: str, folder: Path, straight: Path, steps: int) -> str:
    """Lets a run meet a fault again and again, then finish; returns its row."""
    run, tried, lost = Run(folder, steps, random.Random(f"{name} {SEED.value}")), 0, []
    try:
        if FAULTS[name] is not kill:  # it may begin anywhere; the others begin with checkpoints
            run.train()
            run.stop()
        for _ in range(TIMES.value):
            tried += 1
            try:
                lost.append(FAULTS[name](run))
            except NotSurvived as error:
                run.kill()
                print(f"{name}, {tried}: NOT survived: {error}", flush=True)
            else:
                print(f"{name}, {tried}: at step {soak.newest(folder) + run.lost()}, {lost[-1]} lost", flush=True)
    except Complete:
        tried -= 1
    run.start()
    code, errors = run.end()
    if code:
        print(f"{name}: the run did not finish: {errors[-500:]}", flush=True)
    return row(name, tried, lost, "yes" if code == 0 and soak.same(straight, folder) else "NO")


def not_finite(folder: Path) -> str:
    """Trains a regressor, each time with another number of its file too large to square in float32; returns the row."""
    places, lost = random.Random(SEED.value), []
    examples = sources.load("tfds:movie_sentiment").take(list(range(240)))
    folder.mkdir()
    for time_ in range(TIMES.value):
        numbers = [float(len(text) % 7) for text in examples.texts]
        bad = places.randrange(200)
        numbers[bad] = 3e38
        for part, rows in (("train", slice(0, 200)), ("validation", slice(200, 240))):
            with open(folder / f"{part}_{time_}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *zip(examples.texts[rows], numbers[rows], strict=True)])
        run = folder / str(time_)
        fields = {f"data.{part}": f"csv:{folder}/{part}_{time_}.csv" for part in ("train", "validation")}
        command = soak.command(run, SMALL_REGRESSION | fields, "finetune")
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        lines = [line for line in read_metrics(run) if "skipped" in line]
        if done.returncode == 0 and lines and lines[-1]["step"] == 20 and np.isfinite(lines[-1]["loss"]):
            lost.append(int(lines[-1]["skipped"]))
            print(f"{NOT_FINITE}, {time_ + 1}: row {bad}, {lost[-1]} updates left out", flush=True)
        else:
            print(f"{NOT_FINITE}, {time_ + 1}: NOT survived: {done.stderr[-500:]}", flush=True)
    return row(NOT_FINITE, TIMES.value, lost, "no: updates are left out")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    _obey_permissions()
    names = FAULT.value or [*FAULTS, NOT_FINITE]
    if unknown := [name for name in names if name not in (*FAULTS, NOT_FINITE)]:
        raise SystemExit(f"--fault={unknown[0]}: one of {', '.join([*FAULTS, NOT_FINITE])}")
    disk, steps, rows = Path(WORKDIR.value) / "disk", 100 * TIMES.value, []
    disk.mkdir(parents=True, exist_ok=True)
    if MOUNTS:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", disk], check=True)
    kind = "mounts: a tmpfs, a read-only bind mount" if MOUNTS else "no mounts: a limit on file sizes, permissions"
    print(f"full and read-only disks by {kind}", flush=True)
    straight = Path(WORKDIR.value).absolute() / "straight"
    subprocess.run(soak.pretrain(straight, steps), check=True, stdout=subprocess.DEVNULL)
    for number, name in enumerate(names):
        folder = disk.absolute() / str(number)
        rows.append(not_finite(folder) if name == NOT_FINITE else disturb(name, folder, straight, steps))
        print(rows[-1], flush=True)
        shutil.rmtree(folder)
    print("\n| fault | tried | survived | steps lost, mean | steps lost, most | ends as undisturbed |\n|" + "---|" * 6)
    print("\n".join(rows))


def with_mounts(arguments: list[str]) -> None:
    """Starts the script again in a mount namespace of its own, where the system lets it; else returns."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    try:
        allowed = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        return
    if allowed.returncode == 0:
        os.environ["LEPTON_JAX_FAULTS_MOUNTS"] = "1"
        os.execvp(unshare[0], [*unshare, sys.executable, *arguments])


if __name__ == "__main__":
    if not MOUNTS:
        with_mounts(sys.argv)
    app.run(main)
