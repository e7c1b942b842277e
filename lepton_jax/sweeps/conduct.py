"""A sweep: the runs of an experiment, those that are missing, and its report."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lepton_jax import report
from lepton_jax.config import AblateConfig
from lepton_jax.core.errors import UserError
from lepton_jax.disk import writing
from lepton_jax.sweeps import cluster, cost, experiment
from lepton_jax.sweeps.crew import Outcome, Worker, wait
from lepton_jax.sweeps.progress import Board, Entry
from lepton_jax.workdir import write_json

_LOOK_SECONDS = 1.0

Summary = dict[str, Any]


def ablate(config: AblateConfig, workdir: str | Path) -> Summary:
    """Does the runs of an experiment that are missing in a folder, and writes its report; returns how many there are.

    A run that fails is reported, and the others go on; so does the same command, with what failed and what is left.

    Args:
      config: the stage's, resolved.
      workdir: gets a folder for each run, named by the hash of its config, `plan.json` and the report.

    Raises:
      UserError: the experiment is wrong in itself, which is found before anything runs; or another command is at work
        in the folder.
    """
    workdir = Path(workdir)
    found = experiment.load(config.experiment)
    members = found.members()
    if not members:
        raise UserError(f"{found.path}: has no variants to run; a space is for --config=configs/search.py")
    chosen = _chosen(members, config.only)
    entries = [Entry(member, workdir / member.hash) for member in members]
    metric = found.metrics[0]
    for entry in entries:
        entry.look(metric)
    missing = [entry for entry in entries if entry.state != "done" and entry.member.hash in chosen]
    if config.dry_run:
        cost.show(found.title, entries, missing)
        return _counted(entries)
    if config.where == "commands":
        for line in cluster.commands(found, [entry.member for entry in missing], workdir, config.template):
            print(line)
        return _counted(entries)
    with exclusive(workdir):
        experiment.write_plan(workdir, found, members)
        with Board(entries, metric, found.title) as board:
            if config.where == "slurm":
                cluster.follow(missing, workdir, config.slurm, lambda: _refresh(entries, metric, board))
            else:
                _run(missing, workdir, crew_of(config), metric, board)
        write_failures(workdir, entries)
        page = report.write_sweep(workdir)
    return _counted(entries) | {"report": str(page)}


def crew_of(config: Any) -> list[Worker]:
    """Returns the workers that a config asks for: one a GPU that it names, else so many."""
    return [Worker(gpu) for gpu in config.gpus] or [Worker() for _ in range(config.workers)]


def _run(missing: Sequence[Entry], workdir: Path, workers: list[Worker], metric: str, board: Board) -> None:
    """Does runs, as many at once as there are workers."""
    queue = deque(missing)
    with stopping() as asked:
        try:
            while (queue and not asked()) or any(worker.job for worker in workers):
                if asked():
                    queue.clear()
                    for worker in workers:
                        if worker.job is not None:
                            worker.stop()
                for worker in workers:
                    if worker.job is None and queue:
                        begin(worker, queue.popleft(), workdir)
                for worker in wait(workers, _LOOK_SECONDS):
                    entry = worker.job
                    end(entry, worker.outcome(), metric)
                board.show()
        finally:
            for worker in workers:
                worker.close()
    if asked():
        for entry in missing:
            entry.state = "stopped" if entry.state in ("waiting", "running") else entry.state


def begin(worker: Worker, entry: Entry, workdir: Path) -> None:
    """Gives a run to a worker."""
    logs = workdir / "logs"
    with writing(logs):
        logs.mkdir(exist_ok=True)
    entry.state, entry.began = "running", time.monotonic()
    worker.start(entry, entry.member.config, entry.folder, logs / f"{entry.member.hash}.txt")


def end(entry: Entry, outcome: Outcome, metric: str) -> None:
    """Takes in how a run ended."""
    entry.state, entry.reason = outcome.state, outcome.reason if outcome.state == "failed" else ""
    entry.seconds = time.monotonic() - entry.began
    if outcome.state == "done":
        entry.look(metric)


def write_failures(workdir: Path, entries: Sequence[Entry]) -> None:
    """Writes `failures.json`, hash -> why, of those that failed this time; the report shows them."""
    write_json(workdir / "failures.json", {each.member.hash: each.reason for each in entries if each.state == "failed"})


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Holds the folder of a sweep for one command.

    Raises:
      UserError: another one has it, or the folder cannot be made.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / "config.json").exists():
            raise UserError(f"{workdir}: holds a single run; choose another workdir for a sweep")
        file = open(workdir / ".sweep", "w")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{workdir}: another command is at work on it; wait for it, or stop it") from None
        yield


@contextlib.contextmanager
def stopping() -> Iterator[Any]:
    """Gives a function that says whether SIGTERM or Ctrl-C has come; a second Ctrl-C has its usual effect."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where signals keep their effect
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refresh(entries: Sequence[Entry], metric: str, board: Board) -> None:
    for entry in entries:
        if entry.state in ("running", "waiting", "done") and entry.value is None:
            entry.look(metric)
    board.show()


def _chosen(members: Sequence[experiment.Member], only: str) -> set[str]:
    """Returns the hashes of the runs whose hash or label the text is part of; all where it is empty."""
    found = {member.hash for member in members if only in member.hash or only in member.label}
    if not found:
        raise UserError(f"config.only={only!r}: names no run; there is {members[0].label!r} ({members[0].hash}), ...")
    return found


def _counted(entries: Sequence[Entry]) -> Summary:
    """Returns how many runs there are in which state."""
    states = [entry.state for entry in entries]
    return {"runs": len(states)} | {state: states.count(state) for state in dict.fromkeys(states)}
