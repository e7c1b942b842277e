"""Several processes as one run: real ones on this machine, connected by gloo, beside the same run in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lepton_jax import stages
from lepton_jax.config import resolve
from lepton_jax.core import sharding
from lepton_jax.train.logging import read_metrics
from lepton_jax.workdir import read_json

pytestmark = pytest.mark.once

STEPS = 8
TIMED = ("wall_seconds", "int8.speedup", "pretrain.tokens_per_second", "pretrain.utilisation")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Ended(NamedTuple):
    """A process that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def ended_of(process: subprocess.Popen[str], seconds: float) -> Ended:
    """Waits for the end of a process; what XLA's gloo says of itself is left out."""
    out, err = process.communicate(timeout=seconds)
    lines = [line for line in out.splitlines(keepends=True) if not line.startswith("[Gloo]")]
    return Ended(process.returncode, "".join(lines), err)


class Command:
    """A recipe that is run by the command line in several processes."""

    def __init__(self, folder: Path, config):
        self.folder, self.config = folder, config
        folder.mkdir()
        function = f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
        (folder / "recipe.py").write_text(f"from ml_collections import ConfigDict\n\n\n{function}")

    def start(self, number, count, port, workdir, *flags, devices=1, record=None, **options):
        """Starts one process; `options` are those of process_worker.py."""
        kept = self.folder / (record or "unread")
        kept.mkdir(exist_ok=True)
        optimise = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {optimise}",
            "WORKER": json.dumps({"record": str(kept), **options}),
        }
        line = [sys.executable, str(Path(__file__).parent / "process_worker.py"),
                f"--config={self.folder / 'recipe.py'}", f"--workdir={workdir}", *flags]  # fmt: skip
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, count, workdir, *flags, each=None, seconds=150, **arguments) -> list[Ended]:
        """Runs `count` processes to their end; `each` has further options of single processes."""
        port = free_port()
        running = [
            self.start(number, count, port, workdir, *flags, **arguments, **(each or {}).get(number, {}))
            for number in range(count)
        ]
        try:
            return [ended_of(process, seconds) for process in running]
        finally:
            for process in running:
                process.kill()

    def batches(self, record: str | Path) -> list[dict[str, np.ndarray]]:
        """Returns the global batches that the processes of a run recorded, whose parts are in their order."""
        files = sorted(((self.folder / record).glob("*.npz")), key=lambda p: tuple(map(int, p.stem.split("_"))))
        steps: dict[int, list[Path]] = {}
        for file in files:
            steps.setdefault(int(file.stem.split("_")[0]), []).append(file)
        parts = [[dict(np.load(file)) for file in steps[step]] for step in sorted(steps)]
        return [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in parts]


def metrics(workdir: Path) -> list[dict[str, float]]:
    return read_metrics(workdir, timed=False)


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns path -> array of all that a checkpoint holds."""
    found = {}
    for item in ("params", "rest"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            names = checkpointer.metadata(checkpoint / item).item_metadata.tree
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
            tree = checkpointer.restore(checkpoint / item, args=ocp.args.PyTreeRestore(restore_args=kinds))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            key = jax.dtypes.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key)
            found[item + jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return found


def positions(checkpoint: Path) -> dict[str, object]:
    return {path.name: json.loads(path.read_text()) for path in (checkpoint / "data").glob("*.json")}


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


class Stop(Exception):
    pass


def in_one_process(config, workdir: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None = None):
    """Runs a config in this process, until batch `stop` if that is given; returns its batches."""
    seen, put = [], sharding.put_batch

    def put_batch(batch, mesh):
        if len(seen) == stop:
            raise Stop
        seen.append({name: column.copy() for name, column in batch.items()})
        return put(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "put_batch", put_batch)
        try:
            stages.run(resolve(config), workdir)
        except Stop:
            assert stop is not None
    return seen


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_config) -> Command:
    """Packed masked LM with accumulation, dropout and two streams."""
    config = tiny_config("pretrain")
    config.train.update({"steps": STEPS, "accumulate": 2, "log_every": 1, "batch_size": 16})
    config.checkpoint.update({"every": 2, "keep": 9})
    config.model.dropout = 0.1
    config.data.streams = 2
    return Command(tmp_path_factory.mktemp("processes") / "command", config)


@pytest.fixture(scope="module")
def alone(command):
    """The run in this one process, on eight devices: (workdir, batches)."""
    patch = pytest.MonkeyPatch()
    seen = in_one_process(command.config, command.folder / "alone", patch)
    return command.folder / "alone", seen


@pytest.fixture(scope="module")
def two(command, made_once):
    """The run in two processes: (folder, with `workdir`, and `of_two` for the batches; the processes)."""

    def make(folder: Path) -> None:
        folder.mkdir()
        ended = command.run(2, folder / "workdir", record=folder / "of_two")
        assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
        (folder / "ended.json").write_text(json.dumps(ended))

    folder = made_once("two_processes", make)
    return folder, [Ended(*one) for one in json.loads((folder / "ended.json").read_text())]


def test_two_processes_see_the_same_batches_and_losses_as_one(command, alone, two):
    folder, workdir = two[0], two[0] / "workdir"
    parts = [np.load(folder / "of_two" / f"0_{number}.npz")["token_ids"] for number in range(2)]
    assert [len(part) for part in parts] == [8, 8] and (parts[0] != parts[1]).any(), "each holds its own half"
    seen = command.batches(folder / "of_two")
    assert max(batch["attention_mask"].max() for batch in seen) > 1, "documents are packed"
    assert len({batch["token_ids"].tobytes() for batch in seen[:STEPS]}) == STEPS
    same(seen, alone[1])
    close(metrics(workdir), metrics(alone[0]))
    for step in (2, 8):
        assert positions(workdir / "checkpoints" / f"{step}") == positions(alone[0] / "checkpoints" / f"{step}")
    assert positions(workdir / "checkpoints" / "2") != positions(workdir / "checkpoints" / "8")
    assert set(positions(workdir / "checkpoints" / "2")) == {"stream_0.json", "stream_1.json"}


def test_only_the_first_process_speaks_and_writes(two):
    folder, (first, second) = two
    workdir = folder / "workdir"
    assert f"step {STEPS}/{STEPS}: loss" in first.out and "Summary" in first.out and "more in" in first.out
    assert second.out == ""
    for one, number in ((first, 0), (second, 1)):
        lines = [line for line in one.err.splitlines() if line.startswith("lepton_jax:")]
        assert all(f"process {number} of 2 waits for process" in line for line in lines), one.err
    assert not [line for one in (first, second) for line in one.err.splitlines() if "error" in line.lower()]
    assert read_json(workdir / "config.json")["starts"] == [
        {"devices": {"platform": "cpu", "kind": "cpu", "count": 2}, "processes": 2, "mesh": {"config": "data=-1"}}
    ]
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "summary.json", "report.html", "model.json",
        "tokenizer",
    }  # fmt: skip
    assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_sigterm_to_one_of_two_saves_one_step_and_the_run_goes_on_bit_for_bit(command, two):
    workdir = command.folder / "stopped"
    ended = command.run(2, workdir, record="stopped_1", pause=0.5, each={1: {"terminate": 0}})
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert "stopped by SIGTERM" in ended[0].out and ended[1].out == ""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 0 < steps[-1] < STEPS and f"{steps[-1]} of {STEPS} steps are done and saved" in ended[0].out
    assert [line["step"] for line in metrics(workdir)] == list(range(1, steps[-1] + 1))
    straight = two[0] / "workdir"
    whole = arrays(straight / "checkpoints" / f"{STEPS}")
    assert any((value != whole[path]).any() for path, value in arrays(workdir / "checkpoints" / f"{steps[-1]}").items())

    ended = command.run(2, workdir, record="stopped_2")
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert metrics(workdir) == metrics(straight)
    same([*command.batches("stopped_1"), *command.batches("stopped_2")], command.batches(two[0] / "of_two"))
    resumed = arrays(workdir / "checkpoints" / f"{STEPS}")
    assert resumed.keys() == whole.keys() and any("opt_state" in path for path in whole)
    for path, value in whole.items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    last = "checkpoints", f"{STEPS}"
    assert positions(workdir.joinpath(*last)) == positions(straight.joinpath(*last))


def test_a_run_goes_on_in_one_two_four_and_again_one_process(command, alone, monkeypatch):
    workdir = command.folder / "moved"
    seen = in_one_process(command.config, workdir, monkeypatch, stop=3)[:2]
    for count, shape, after in ((2, "data=-1", 4), (4, "data=2,fsdp=2", 6)):
        ended = command.run(
            count, workdir, f"--config.mesh.shape={shape}", record=f"moved_{count}",
            leave=2, after=str(workdir / "checkpoints" / f"{after}" / "manifest.json"),
        )  # fmt: skip
        assert [one.code for one in ended] == [9] * count, [one.err for one in ended]
        seen += command.batches(f"moved_{count}")
    seen += in_one_process(command.config, workdir, monkeypatch)
    same(seen, alone[1])
    close(metrics(workdir), metrics(alone[0]))
    starts = read_json(workdir / "config.json")["starts"]
    assert [(start["processes"], start["mesh"]["config"]) for start in starts] == [
        (1, "data=-1"), (2, "data=-1"), (4, "data=2,fsdp=2"), (1, "data=-1")
    ]  # fmt: skip
    found, wanted = (arrays(folder / "checkpoints" / f"{STEPS}") for folder in (workdir, alone[0]))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def alike(a, b) -> bool:
    """Whether two trees are the same but for what another order of additions changes in numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == (pytest.approx(b, abs=0.02) if isinstance(a, float) else b)


def test_fine_tuning_in_two_processes_ends_with_the_same_summary(tmp_path, tiny_config):
    config = tiny_config("finetune")
    config.mesh.shape = "fsdp=-1"  # no process has all of the parameters
    command = Command(tmp_path / "command", config)
    in_one = stages.run(resolve(config), tmp_path / "one")
    ended = command.run(2, tmp_path / "two")
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    in_two = read_json(tmp_path / "two" / "summary.json")
    assert in_two.keys() == in_one.keys()
    assert alike(*({name: value for name, value in each.items() if name not in TIMED} for each in (in_one, in_two)))
    names = [{str(path.relative_to(tmp_path / part)) for path in (tmp_path / part).rglob("*") if path.is_file()
              and not {"params", "rest", "tensorboard"} & set(path.parts)} for part in ("one", "two")]  # fmt: skip
    assert names[0] == names[1] and "int8/model.json" in names[0]
    outputs = [
        [json.loads(line) for line in (tmp_path / part / "predictions.jsonl").read_text().splitlines()]
        for part in ("one", "two")
    ]
    assert [line["text"] for line in outputs[0]] == [line["text"] for line in outputs[1]]
    assert [line["score"] for line in outputs[0]] == pytest.approx([line["score"] for line in outputs[1]], abs=0.02)


def test_bad_batches_take_all_processes_back_and_at_last_stop_them(command):
    flags = ["--config.train.max_skipped=2", "--config.train.max_rollbacks=1"]
    workdir = command.folder / "bad"
    ended = command.run(2, workdir, *flags, record="bad_batches", each={0: {"poison": list(range(3, 20))}})
    assert [one.code for one in ended] == [2, 2], [one.err for one in ended]
    assert "is not finite: back to step 4, past these batches" in ended[0].out and ended[1].out == ""
    for one in ended:
        assert "was not finite, after going back 1 times; the last batch is in bad_batch_0.npz" in one.err
    bad = [np.load(workdir / f"bad_batch_{number}.npz") for number in range(2)]
    assert bad[0]["step"] == bad[1]["step"] and (bad[0]["token_ids"] != bad[1]["token_ids"]).any()
    seen = command.batches("bad_batches")
    (number,) = [n for n, batch in enumerate(seen) if (batch["token_ids"][:8] == bad[0]["token_ids"]).all()]
    assert number > 3 and np.isinf(seen[number]["weight"][:8]).all() and np.isfinite(seen[number]["weight"][8:]).all()
    np.testing.assert_array_equal(seen[number]["token_ids"][8:], bad[1]["token_ids"])


def test_when_one_process_fails_the_other_ends_too_and_names_it(command):
    ended = command.run(2, command.folder / "failed", heartbeat=10, each={1: {"fail": 2}}, seconds=60)
    assert ended[1].code == 1 and "lepton_jax: error: the disk is gone" in ended[1].err
    assert ended[0].code not in (0, 2) and "Summary" not in ended[0].out
    assert "Task 1 heartbeat timeout" in ended[0].err or "stopped sending heartbeats" in ended[0].err


def test_an_absent_process_is_named_by_all_that_are_there(command):
    port, flags = free_port(), ["--config.mesh.timeout=4"]
    running = [command.start(number, 3, port, command.folder / "absent", *flags) for number in (0, 2)]
    ended = [ended_of(process, 60) for process in running]
    assert [one.code for one in ended] == [2, 2]
    for one in ended:
        assert one.out == "" and one.err.splitlines()[-1] == (
            f"lepton_jax: error: process 1 of 3 did not come to localhost:{port} within 4 seconds; "
            "start every process with the same mesh.coordinator"
        )
    assert f"process 0 of 3 waits for processes 1, 2 at localhost:{port}, up to 4 s" in ended[0].err
    assert f"process 2 of 3 waits for process 1 at localhost:{port}, up to 4 s" in ended[1].err
    assert not (command.folder / "absent").exists()


@pytest.mark.parametrize("what", ["configs", "data"])
def test_processes_that_differ_are_refused(command, tmp_path, what):
    port, workdir = free_port(), tmp_path / "run"
    running = []
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "text.txt").write_text(
            "\n\n".join(f"the text {(number if what == 'data' else 0) + index}" for index in range(300))
        )
        flags = [f"--config.train.seed={number}"] if what == "configs" else []
        here = os.getcwd()
        os.chdir(tmp_path / f"{number}")  # the same relative path names another file
        try:
            flags += ["--config.data.train=text:text.txt", "--config.data.tokenizer_size=300"]
            running.append(command.start(number, 2, port, workdir, *flags))
        finally:
            os.chdir(here)
    ended = [ended_of(process, 60) for process in running]
    assert [one.code for one in ended] == [2, 2], [one.err for one in ended]
    for one in ended:
        message = f"processes 0 and 1 were started with other {what}; give all the same command and files"
        assert one.err.splitlines()[-1] == f"lepton_jax: error: {message}"
    assert not workdir.exists() or not list(workdir.iterdir())
