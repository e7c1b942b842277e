"""How far the runs of a sweep are, read from their folders, and the live table that shows it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text

from lepton_jax.config import runs
from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.display import shown, words
from lepton_jax.sweeps.experiment import Member
from lepton_jax.workdir import read_json, read_jsonl

State = Literal["waiting", "running", "done", "failed", "stopped", "given up"]
_MARKS = {"waiting": "dim", "running": "bold", "done": "", "failed": "bold red", "stopped": "dim", "given up": "dim"}
_PARTS = ("pretrain", "finetune", "from_scratch")  # of a chain, in their order


@dataclasses.dataclass
class Entry:
    """One run, as its sweep sees it."""

    member: Member
    folder: Path
    state: State = "waiting"
    reason: str = ""  # of a failure
    began: float = 0.0
    seconds: float | None = None
    value: float | None = None  # of the main metric; of a search, what it goes by

    @property
    def steps(self) -> int:
        """How many steps it has in all."""
        return sum(config.train.steps * config.train.seeds for _, config in runs(self.member.config))

    def look(self, metric: str) -> None:
        """Takes from the folder what a run that is complete came to."""
        summary = finished(self.folder)
        if summary is not None:
            self.state, self.seconds = "done", summary.get("wall_seconds")
            self.value = summary.get(metric)


def finished(folder: Path) -> dict[str, Any] | None:
    """Returns the summary of a run that is complete, or None."""
    return read_json(folder / "summary.json") if (folder / "summary.json").exists() else None


def lines(folder: Path) -> list[dict[str, Any]]:
    """Returns what a run has logged so far, of a chain or of several seeds one part after the other."""
    parts = [folder, *(folder / name for name in _PARTS)]
    folders = [each for part in parts for each in (part, *sorted(part.glob("seed_*")))]
    try:
        return [line for each in folders for line in read_jsonl(each / "metrics.jsonl")]
    except UserError:  # it is being written anew, or damaged, which the run itself will say
        return []


def done_steps(logged: Sequence[dict[str, Any]]) -> int:
    """Returns how many steps a run has done, by what it has logged: they fall where the next part of it begins."""
    total = last = 0
    for line in logged:
        if line["step"] < last:
            total += last
        last = line["step"]
    return total + last


class Board:
    """Shows entries while they run, in a `with` statement: on a terminal as one table, else a line for each change."""

    def __init__(self, entries: Sequence[Entry], metric: str, title: str):
        self._entries, self._metric, self._title = entries, metric, title
        self._console = rich.console.Console()
        self._live: rich.live.Live | None = None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live = rich.live.Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis")
            self._live.start()
        self.show()
        return self

    def __exit__(self, *error: object) -> None:
        self.show()
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Brings what is shown up to date."""
        if self._live:
            self._live.update(self.table(self._console.height - 6), refresh=True)
            return
        for entry in self._entries:
            told = entry.state + entry.reason
            if told != self._told.get(entry.member.hash, "waiting"):
                self._told[entry.member.hash] = told
                print(" ".join(filter(None, self._row(entry))), flush=True)

    def table(self, height: int) -> rich.table.Table:
        """Returns the table, of at most so many rows: what runs or failed first, then what ended last."""
        counts = Counter(entry.state for entry in self._entries)
        title = f"{self._title}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left")
        for column, justify in (("run", "left"), ("variant", "left"), ("state", "left"), ("step", "right"),
                                ("loss", "right"), (words(self._metric), "right"), ("time", "right")):  # fmt: skip
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        order = {"running": 0, "failed": 1, "done": 2, "given up": 2, "stopped": 3, "waiting": 4}
        entries = sorted(self._entries, key=lambda entry: order[entry.state])
        for entry in entries[: max(height, 3)]:
            table.add_row(*(rich.text.Text(cell, style=_MARKS[entry.state]) for cell in self._row(entry)))
        if len(entries) > max(height, 3):
            table.caption = f"and {len(entries) - max(height, 3)} more"
        return table

    def _row(self, entry: Entry) -> tuple[str, ...]:
        step = loss = ""
        if entry.state in ("running", "stopped"):
            logged = lines(entry.folder)
            losses = [line["loss"] for line in logged if "loss" in line]
            step = f"{done_steps(logged):,}/{entry.steps:,}"
            loss = f"{losses[-1]:.4f}" if losses else ""
        seconds = time.monotonic() - entry.began if entry.state == "running" else entry.seconds
        value = "" if entry.value is None else shown(self._metric, entry.value)
        state = f"{entry.state}: {entry.reason}" if entry.reason else entry.state
        clock = "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        return entry.member.hash, entry.member.label, state, step, loss, value, clock
