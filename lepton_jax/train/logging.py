"""What a run writes down while it trains: metrics.jsonl, what its boards show, and a line on the screen.

    {"step": 20, "loss": 2.31, "learning_rate": 0.001, "tokens_per_second": 18250.4, "utilisation": 0.41}
    {"step": 200, "validation/loss": 2.05, "validation/accuracy": 0.61}

A metric of training has its plain name, any other its prefix before it. On a board, TensorBoard or Weights & Biases,
each has its prefix.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import rich.console
import rich.progress

from lepton_jax import processes
from lepton_jax.config import Config
from lepton_jax.core.errors import UserError
from lepton_jax.disk import writing
from lepton_jax.train.board import Board
from lepton_jax.train.tensorboard import TensorBoard
from lepton_jax.train.weights_and_biases import WeightsAndBiases
from lepton_jax.workdir import read_jsonl, replace_file

_TIMED = ("tokens_per_second", "flops_per_second", "utilisation")
_PLAIN_LINE_SECONDS = 10.0  # between two lines of training on an output that is no terminal


class MetricsLogger:
    """Records a run's metrics, line by line, so that a killed run loses none. Used in a `with` statement.

    Everything that writes raises UserError where the disk does not take it, and entering also where metrics.jsonl is
    damaged. Of several processes only the first one writes and prints.
    """

    def __init__(
        self,
        workdir: Path,
        total_steps: int,
        start: int = 0,
        quiet: bool = False,
        peak_flops: float | None = None,
        config: Config | None = None,
    ) -> None:
        """Describes the run; files are opened on entering.

        Args:
          workdir: the run's folder.
          total_steps: the step at which training ends.
          start: the step that training resumes from. What an earlier process recorded beyond it will be
            recorded again, so it is cut off: no step appears twice.
          quiet: prints nothing.
          peak_flops: FLOP/s that all devices can reach together; None: unknown.
          config: the run's, for Weights & Biases where `train.wandb` asks for it; None: TensorBoard alone.
        """
        self._workdir = workdir
        self._total_steps = total_steps
        self._start = start
        self._writes = jax.process_index() == 0
        self._prints = self._writes and not quiet
        self._peak_flops = peak_flops
        self._config = config
        self._boards: list[Board] = []
        self._clock: tuple[int, int, float, float] | None = None  # step, tokens, FLOPs, time of the last training log
        self._deferred: tuple[int, Mapping[str, Any], Sequence[Any], float] | None = None
        self._tokens, self._flops = 0, 0.0  # of the deferred logs so far
        self._paused = 0.0  # seconds since then that were not training
        self._counted_steps, self._counted_tokens, self._counted_seconds = 0, 0, 0.0
        self._last_line = -_PLAIN_LINE_SECONDS
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> MetricsLogger:
        with processes.together():
            if self._writes:
                self._open(self._start)
                with self._writing_boards():
                    self._boards.append(TensorBoard(self._workdir / "tensorboard"))
                    if self._config is not None and self._config.train.wandb:
                        self._boards.append(WeightsAndBiases(self._workdir, self._config, self.note))
                    for board in self._boards:
                        board.forget(self._start)
        console = rich.console.Console()
        if self._prints and console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=console,
            )
            self._bar.add_task("compiling", total=self._total_steps, completed=self._start)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        # Files on a disk that made the run end cannot be closed either; that is no news.
        with contextlib.suppress(UserError) if isinstance(error, UserError) else contextlib.nullcontext():
            self._close(failed=error is not None)

    def rewind(self, step: int, reason: str) -> None:
        """Forgets what was recorded beyond a step to which training goes back, and prints why it does."""
        self._deferred = self._clock = None
        self.note(reason)
        with processes.together():
            if self._writes:
                with writing(self._workdir / "metrics.jsonl"):
                    self._file.close()
                self._open(step)
                with self._writing_boards():
                    for board in self._boards:
                        board.forget(step)

    def _open(self, start: int) -> None:
        """Opens the file to go on after a step; lines beyond it will be recorded again, so they are cut off."""
        kept = [line for line in read_metrics(self._workdir) if line["step"] <= start]
        path = self._workdir / "metrics.jsonl"
        replace_file(path, "".join(_to_line(line) for line in kept))
        with writing(path):
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def _close(self, failed: bool) -> None:
        """Closes all that is open, whatever becomes of the rest."""
        with contextlib.ExitStack() as stack:
            if self._writes:
                stack.enter_context(writing(self._workdir / "metrics.jsonl"))
                stack.callback(self._file.close)
                for board in self._boards:
                    stack.enter_context(self._writing_boards())
                    stack.callback(board.close, failed)

    def _writing_boards(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._workdir / "tensorboard")

    def log(
        self, step: int, metrics: Mapping[str, Any], tokens: int = 0, flops: float = 0.0, prefix: str = "train"
    ) -> None:
        """Records the metrics of a step.

        A line of training also gets `tokens_per_second`, the rate since the line of training before it, and
        `flops_per_second` and `utilisation`, its share of the peak, where FLOPs and peak are known. The first one has
        none: the time to it is mostly compilation.

        Args:
          step: the number of steps done, counted from 1.
          metrics: scalars, of Python, numpy or jax.
          tokens: of training, how many this process and the others have seen so far, padding not counted.
          flops: of training, likewise, see `models.flops`.
          prefix: "train", or what else was measured ("validation").
        """
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if prefix == "train":
            values |= self._rates(step, tokens, flops)
        if self._writes:
            named = values if prefix == "train" else {f"{prefix}/{name}": value for name, value in values.items()}
            with writing(self._workdir / "metrics.jsonl"):
                self._file.write(_to_line({"step": step, **named}))
            with self._writing_boards():
                for board in self._boards:
                    board.add({f"{prefix}/{name}": value for name, value in values.items()}, step)
        if self._prints:
            self._show(step, values, prefix)

    def defer(self, step: int, metrics: Mapping[str, Any], tokens: Sequence[Any], flops: float) -> None:
        """Keeps metrics of training to be logged at the next `flush`: fetching them now would wait for their step.

        Here `tokens` are the numbers of all steps since the last call, which need not be there yet either, and `flops`
        those of these steps.
        """
        self._deferred = (step, metrics, tokens, flops)

    def flush(self) -> None:
        """Logs what was deferred, if anything."""
        if self._deferred is not None:
            step, metrics, tokens, flops = self._deferred
            self._tokens += sum(map(int, tokens))
            self._flops += flops
            self.log(step, metrics, self._tokens, self._flops)
            self._deferred = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Flushes, also to disk, and leaves the time inside out of `tokens_per_second`.

        For an evaluation or a checkpoint: what was logged up to a step is on disk before the step is saved.
        """
        self.flush()
        start = time.perf_counter()
        if self._writes:
            with self._writing_boards():
                for board in self._boards:
                    board.flush()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    @property
    def tokens_per_second(self) -> float | None:
        """The rate over the whole run so far, compilation and pauses left out; None before the second log."""
        return self._counted_tokens / self._counted_seconds if self._counted_seconds else None

    def _rates(self, step: int, tokens: int, flops: float) -> dict[str, float]:
        """Moves the clock to `step`; returns what is known of the speed since the last training log."""
        now = time.perf_counter()
        last, self._clock = self._clock, (step, tokens, flops, now)
        paused, self._paused = self._paused, 0.0
        if last is None:
            return {}
        seconds = max(now - last[3] - paused, 1e-9)
        self._counted_steps += step - last[0]
        self._counted_tokens += tokens - last[1]
        self._counted_seconds += seconds
        rates = {"tokens_per_second": (tokens - last[1]) / seconds}
        if flops > last[2]:
            rates["flops_per_second"] = (flops - last[2]) / seconds
            if self._peak_flops is not None:
                rates["utilisation"] = rates["flops_per_second"] / self._peak_flops
        return rates

    def _show(self, step: int, values: dict[str, float], prefix: str) -> None:
        """Moves the bar, or prints a line now and then where there is no terminal."""
        rate = self.tokens_per_second
        parts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
        if prefix != "train":
            others = [f"{name} {value:.4f}" for name, value in values.items() if name != "loss"]
            self.note(f"{prefix} at step {step}: {', '.join(parts + others)}")
            return
        if rate is not None:
            left = (self._total_steps - step) * self._counted_seconds / self._counted_steps
            parts += [f"{rate:,.0f} tokens/s", f"{_duration(left)} left"]
        if self._bar:
            self._bar.update(rich.progress.TaskID(0), completed=step, description=", ".join(parts))
        elif step >= self._total_steps or time.perf_counter() - self._last_line >= _PLAIN_LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.note(f"step {step}/{self._total_steps}: {', '.join(parts)}")

    def note(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if not self._prints:
            return
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(f"{text}\n", end="", file=sys.stdout, flush=True)  # one write: W&B's thread prints too


def read_metrics(workdir: Path, timed: bool = True) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, each with its "step"; none where nothing was logged yet.

    Args:
      workdir: the run's folder.
      timed: whether with the measured speeds, which differ where all else is repeated bit for bit.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / "metrics.jsonl"
    lines = read_jsonl(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("step"), int):
            raise UserError(f"{path}: line {number} has no step; the file is damaged")
    return lines if timed else [{k: v for k, v in line.items() if k not in _TIMED} for line in lines]


def _to_line(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics) + "\n"


def _duration(seconds: float) -> str:
    """Returns 3725 seconds as "1:02:05", 65 as "1:05"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
