from __future__ import annotations

import contextlib
import io
import json
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto import event_pb2

from lepton_jax.core.errors import UserError
from lepton_jax.train import logging
from lepton_jax.train.logging import MetricsLogger, read_metrics

pytestmark = pytest.mark.once


def scalars(workdir: Path) -> dict[tuple[str, int], float]:
    """Reads TensorBoard's event files: records of length, checksum, data, checksum."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])  # pyright: ignore[reportAttributeAccessIssue]
            at += size + 16
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_a_line_and_a_scalar_for_every_log(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 4, quiet=True) as logger:
        logger.log(1, {"loss": jnp.float32(2.5), "learning_rate": np.float64(0.1)})
        logger.log(2, {"loss": 2.0})
        logger.log(2, {"loss": 2.25, "accuracy": 0.5}, prefix="validation")
    first, second, third = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 2.5, "learning_rate": 0.1}
    assert second.keys() == {"step", "loss", "tokens_per_second"} and second["loss"] == 2.0
    assert third == {"step": 2, "validation/loss": 2.25, "validation/accuracy": 0.5}
    board = scalars(tmp_path)
    assert board["train/loss", 1] == 2.5 and board["validation/accuracy", 2] == 0.5
    assert ("train/tokens_per_second", 2) in board and ("train/tokens_per_second", 1) not in board


def test_a_line_is_on_disk_before_the_logger_is_closed(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 4, quiet=True) as logger:
        logger.log(1, {"loss": 2.5})
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """What a full disk is like: no file of this process can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_stops_the_run_at_the_line_that_it_does_not_take(tmp_path: Path, full: str) -> None:
    logged = 0
    with (
        pytest.raises(
            UserError, match=rf"{tmp_path}/{full}: cannot be written \(File too large\); make space, then give"
        ),
        MetricsLogger(tmp_path, 900, quiet=True) as logger,
        file_limit(1500),
    ):
        for step in range(1, 900):
            logger.log(step, {"loss": 2.5})
            if full == "tensorboard":  # whose file is larger, but not written line by line
                with logger.paused():
                    logged = step
            logged = step
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert 5 < len(steps) < 900 and steps == list(range(1, len(steps) + 1)) and len(steps) >= logged
    with MetricsLogger(tmp_path, 900, start=logged, quiet=True) as logger:  # after space was made
        logger.log(logged + 1, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, logged + 2))
    assert {"train/loss"} <= {name for name, step in scalars(tmp_path) if step == logged + 1}


def test_files_that_cannot_be_closed_do_not_hide_the_cause(tmp_path: Path) -> None:
    def log(logger: MetricsLogger) -> None:
        for step in range(1, 25):
            logger.log(step, {"loss": 2.5})

    with pytest.raises(UserError, match="tensorboard: cannot be written"), file_limit(1800):  # noqa: SIM117
        with MetricsLogger(tmp_path, 900, quiet=True) as logger:
            log(logger)
    with pytest.raises(UserError, match="the cause"), file_limit(1800):  # noqa: SIM117
        with MetricsLogger(tmp_path, 900, quiet=True) as logger:
            log(logger)
            raise UserError("the cause")


def test_scalars_are_on_disk_before_a_checkpoint_is_made(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 4, quiet=True) as logger:
        logger.log(1, {"loss": 2.5})
        with logger.paused():
            assert scalars(tmp_path) == {("train/loss", 1): 2.5}


def test_resuming_cuts_off_the_steps_that_come_again(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 40, quiet=True) as logger:
        for step in (10, 20, 30):
            logger.log(step, {"loss": float(step)})
            logger.log(step, {"loss": float(step)}, prefix="validation")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    with MetricsLogger(tmp_path, 40, start=20, quiet=True) as logger:
        for step in (30, 40):
            logger.log(step, {"loss": -1.0})
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 10, 20, 20, 30, 40]
    assert [line["loss"] for line in lines if "loss" in line] == [10.0, 20.0, -1.0, -1.0]


def test_a_run_that_starts_again_from_nothing_keeps_no_lines(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with MetricsLogger(tmp_path, 4, quiet=True) as logger:
            logger.log(1, {"loss": loss})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("resumed", [False, True])
def test_tensorboard_shows_what_came_again_and_not_what_it_replaces(tmp_path: Path, resumed: bool) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLogger(tmp_path, 40, quiet=True) as logger:
        for step in (10, 20, 30, 35):
            logger.log(step, {"loss": float(step)})
        if not resumed:
            logger.rewind(20, "back")
            logger.log(30, {"loss": -1.0})
    if resumed:
        with MetricsLogger(tmp_path, 40, start=20, quiet=True) as logger:
            logger.log(30, {"loss": -1.0})
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    found = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert found == [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert found == [(line["step"], line["loss"]) for line in read_metrics(tmp_path)]


def test_the_rate_leaves_out_compilation_and_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with MetricsLogger(tmp_path, 100, quiet=True) as logger:
        now[0] += 50  # compilation
        logger.log(1, {}, tokens=8)
        assert logger.tokens_per_second is None
        now[0] += 10
        logger.log(21, {}, tokens=8 * 21)
        now[0] += 10
        with logger.paused():
            now[0] += 1000
            logger.log(31, {"loss": 1.0}, prefix="validation")
        now[0] += 30
        logger.log(61, {}, tokens=8 * 61)
        assert logger.tokens_per_second == pytest.approx((20 + 40) * 8 / (10 + 40))
    rates = [line.get("tokens_per_second") for line in read_metrics(tmp_path)]
    assert rates == [None, pytest.approx(20 * 8 / 10), None, pytest.approx(40 * 8 / 40)]


def test_deferred_metrics_are_logged_once_and_before_what_a_pause_is_for(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 4, quiet=True) as logger:
        logger.flush()  # nothing yet
        logger.defer(1, {"loss": 1.0}, [8], 0.0)
        assert read_metrics(tmp_path) == []
        with logger.paused():
            logger.log(1, {"loss": 2.0}, prefix="validation")
        logger.flush()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 1, "validation/loss": 2.0}]


def test_the_tokens_and_flops_of_deferred_logs_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with MetricsLogger(tmp_path, 4, quiet=True, peak_flops=24.0) as logger:
        for step, counts in ((1, [7]), (3, [jnp.int32(5), jnp.int32(6)]), (4, [jnp.int32(9)])):
            now[0] += 10
            logger.defer(step, {}, counts, 60.0)
            logger.flush()
        assert logger.tokens_per_second == (5 + 6 + 9) / 20
    lines = read_metrics(tmp_path)
    assert [line.get("tokens_per_second") for line in lines] == [None, 1.1, 0.9]
    assert [line.get("flops_per_second") for line in lines] == [None, 6.0, 6.0]
    assert [line.get("utilisation") for line in lines] == [None, 0.25, 0.25]
    assert read_metrics(tmp_path, timed=False) == [{"step": step} for step in (1, 3, 4)]


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with MetricsLogger(tmp_path, 10) as logger:
        for step in range(1, 11):
            logger.log(step, {"loss": 1 / step}, tokens=1000 * step)
            now[0] += 4.0
        logger.log(10, {"loss": 0.5, "accuracy": 0.75}, prefix="validation")
    assert capsys.readouterr().out.splitlines() == [
        "step 1/10: loss 1.0000",
        "step 4/10: loss 0.2500, 250 tokens/s, 0:24 left",
        "step 7/10: loss 0.1429, 250 tokens/s, 0:12 left",
        "step 10/10: loss 0.1000, 250 tokens/s, 0:00 left",
        "validation at step 10: loss 0.5000, accuracy 0.7500",
    ]


def test_a_line_is_one_write_so_that_those_of_two_threads_stay_apart(tmp_path: Path, monkeypatch) -> None:
    writes: list[str] = []
    with MetricsLogger(tmp_path, 1) as logger, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys.stdout, "write", writes.append)
        logger.note("one")
        logger.note("other")
    assert [text for text in writes if text] == ["one\n", "other\n"]


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with MetricsLogger(tmp_path, 1, quiet=quiet) as logger:
            logger.log(1, {"loss": 1.0})
        assert bool(capsys.readouterr().out) is not quiet


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = rich.console.Console(force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda: terminal)
    with MetricsLogger(tmp_path, 20) as logger:
        logger.log(1, {"loss": 2.0}, tokens=1000)
        logger.log(20, {"loss": 1.25}, tokens=20_000)
        logger.log(20, {"loss": 1.5}, prefix="validation")
    shown = capsys.readouterr().out
    assert "step 20/20" in shown and "loss 1.2500" in shown and "tokens/s" in shown and "left" in shown
    assert "validation at step 20: loss 1.5000" in shown


def test_other_processes_write_and_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsLogger(tmp_path, 1) as logger:
        logger.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_damaged_file_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for text, message in (("{broken\n", "line 1 is not valid JSON"), ('{"loss": 1}\n', "line 1 has no step")):
        path.write_text(text)
        with pytest.raises(UserError, match=message), MetricsLogger(tmp_path, 1, quiet=True):
            pass
        assert path.read_text() == text


def test_lines_are_plain_json(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, 1, quiet=True) as logger:
        logger.log(1, {"loss": jnp.bfloat16(1.5)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.5}


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (65, "1:05"), (3725, "1:02:05"), (36000, "10:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert logging._duration(seconds) == text
