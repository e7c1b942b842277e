"""Weights & Biases as a board: what the real package writes offline, and what its failures cost a run: nothing."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from lepton_jax import stages, workdir
from lepton_jax.config import Config, TrainConfig
from lepton_jax.core.errors import UserError
from lepton_jax.train import weights_and_biases
from lepton_jax.train.logging import MetricsLogger, read_metrics

pytestmark = pytest.mark.once

CONFIG = Config(train=TrainConfig(learning_rate=0.125, wandb="project"))


def records(path: Path) -> list[Any]:
    """Reads a file of W&B: a header, then LevelDB's log of records, each a message of its protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, parts = path.read_bytes(), 7, [], b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # a block ends in zeros where no header fits
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(found: list[Any]) -> list[dict[str, Any]]:
    rows = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in found if record.WhichOneof("record_type") == "history"]  # fmt: skip
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def of(kind: str, found: list[Any]) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_the_real_package_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "sent"))
    (tmp_path / "sent").mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    weights_and_biases.require("project", "config")

    def session(start: int, write: Any) -> list[Any]:
        before = set((tmp_path / "sent").glob("wandb/offline-run-*/*.wandb"))
        write(start)
        (new,) = set((tmp_path / "sent").glob("wandb/offline-run-*/*.wandb")) - before
        for _ in range(100):  # the package closes its file a moment after it said that it has
            if of("exit", found := records(new)):
                break
            time.sleep(0.1)
        return found

    def first(start: int) -> None:
        with MetricsLogger(folder, 40, start, config=CONFIG) as logger:
            for step, loss in ((10, 3.0), (20, 2.0), (30, float("nan"))):
                logger.log(step, {"loss": loss})
            logger.rewind(20, "back")
            logger.log(30, {"loss": 1.5})
            logger.log(30, {"loss": 1.75, "accuracy": 0.5}, prefix="validation")

    def killed(start: int) -> None:
        with (
            pytest.raises(ZeroDivisionError),
            MetricsLogger(folder, 40, start, quiet=True, config=CONFIG) as logger,
        ):
            logger.log(20, {"loss": 1.9})
            raise ZeroDivisionError

    def concluded(_: int) -> None:
        weights_and_biases.conclude(folder, CONFIG, {"finetune.f1": 0.75, "finetune.slices": [{"f1": 1.0}]})

    one, two, three = session(0, first), session(10, killed), session(0, concluded)
    rows = history(one)
    assert [row["step"] for row in rows] == [10, 20, 30, 30, 30]
    assert [row["train/loss"] for row in rows[:2]] == [3.0, 2.0] and rows[3]["train/loss"] == 1.5
    assert rows[4] == {"step": 30, "validation/loss": 1.75, "validation/accuracy": 0.5}
    assert history(two)[0]["step"] == 20 and history(two)[0]["train/loss"] == 1.9
    runs = [of("run", found)[0] for found in (one, two, three)]
    assert {run.run_id for run in runs} == {workdir.read_json(folder / "wandb.json")["id"]}
    assert {(run.project, run.display_name) for run in runs} == {("project", str(folder)[-128:])}
    shown = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert shown["train"]["learning_rate"] == 0.125 and shown["stage"] == "pretrain"
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in of("metric", one))
    assert [of("exit", found)[0].exit_code for found in (one, two, three)] == [0, 1, 0]
    summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
               for record in of("summary", three) for item in record.update}  # fmt: skip
    assert summary["finetune/f1"] == 0.75 and not any("slices" in name for name in summary)
    assert f"W&B: offline; `wandb sync --id={runs[0].run_id} {tmp_path}/sent" in capsys.readouterr().out


class Fake(types.ModuleType):
    """The package, as far as it is used; what was sent is in `runs`, one entry for each `init`."""

    def __init__(self, mode: str = "online", fails: str = "", key: bool = True):
        super().__init__("wandb")
        self.mode, self.fails, self.key = mode, fails, key
        self.runs: list[Any] = []
        self.ids: set[str] = set()
        self.hanging = threading.Event()

    def setup(self) -> Any:
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, **_: Any) -> bool:
        return self.key

    def init(self, mode: str | None = None, **arguments: Any) -> Any:
        if self.fails == "hang":
            self.hanging.wait(60)
        if arguments["id"] in self.ids:
            raise RuntimeError("in use")
        self.ids.add(arguments["id"])
        if (self.fails == "init" and mode != "offline") or self.fails == "always":
            raise ConnectionError("no\nroute")
        run = types.SimpleNamespace(
            rows=[], arguments=arguments, summary={}, offline=mode == "offline", dir="there/files", url="https://x",
            define_metric=lambda *_, **__: None, ended=None,
        )  # fmt: skip

        def log(row: Mapping[str, float]) -> None:
            if self.fails == "log" and len(run.rows) == 1:
                raise BrokenPipeError("gone")
            run.rows.append(row)

        run.log, run.finish = log, lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run


def log_three(folder: Path) -> None:
    with MetricsLogger(folder, 3, config=CONFIG) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"loss": float(step)})
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fails", "said", "sent"),
    [
        ("", "W&B: https://x", [1, 2, 3]),
        ("init", "W&B cannot be reached (no route)\nW&B: offline; `wandb sync --id=", [1, 2, 3]),
        ("always", "W&B has failed (no route); metrics.jsonl has everything", None),
        ("log", "W&B has failed (gone); metrics.jsonl has everything", [1]),
        ("hang", "W&B does not answer and is left behind; metrics.jsonl has everything", None),
    ],
)
def test_a_failure_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, fails, said, sent):
    fake = Fake(fails=fails)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if fails == "hang":
        monkeypatch.setattr(weights_and_biases, "_START_SECONDS", 0.0)
        monkeypatch.setattr(weights_and_biases, "_END_SECONDS", 0.1)
    log_three(tmp_path)
    lines = capsys.readouterr().out.splitlines()  # of two threads, which come in any order
    assert said in "\n".join(line for line in lines if line.startswith("W&B"))
    assert ([row["step"] for row in fake.runs[0].rows] if fake.runs else None) == sent
    assert not fake.runs or fake.runs[0].ended == (None if fails == "log" else 0)
    fake.hanging.set()
    for thread in (each for each in threading.enumerate() if each.name == "wandb"):
        thread.join()


def test_only_the_first_process_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsLogger(tmp_path, 1, config=CONFIG) as logger:
        logger.log(1, {"loss": 1.0})
    assert fake.runs == [] and list(tmp_path.iterdir()) == []


def test_without_a_project_the_package_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    plain = dataclasses.replace(CONFIG, train=TrainConfig())
    with MetricsLogger(tmp_path, 1, quiet=True, config=plain) as logger:
        logger.log(1, {"loss": 1.0})
    weights_and_biases.require("", "config")
    weights_and_biases.conclude(tmp_path, plain, {})
    assert not (tmp_path / "wandb.json").exists()


@pytest.mark.parametrize("there", [None, types.ModuleType("wandb")])  # nothing, or a folder of that name
def test_a_missing_package_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there) -> None:
    monkeypatch.setitem(sys.modules, "wandb", there)
    with pytest.raises(UserError) as caught:
        stages.run(CONFIG, tmp_path / "run")
    assert str(caught.value) == (
        "config.train.wandb='project': needs the package wandb; pip install 'lepton_jax[wandb]'"
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_key_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake(key=False))
    with pytest.raises(UserError, match=r"config\.train\.wandb='project': W&B has no API key; give `wandb login`, or"):
        stages.run(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "wandb", Fake(key=False, mode="offline"))
    weights_and_biases.require("project", "config")
