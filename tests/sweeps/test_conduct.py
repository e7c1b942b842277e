"""Sweeps that really run: what is missing, once; what fails, without stopping the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lepton_jax import plan, sweeps
from lepton_jax.config import AblateConfig, SlurmConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import locked
from lepton_jax.sweeps import cost
from lepton_jax.sweeps.conduct import begin, crew_of, exclusive
from lepton_jax.sweeps.crew import Outcome, Worker, _serve, run_alone, wait
from lepton_jax.sweeps.progress import done_steps

pytestmark = pytest.mark.once

ABLATE = Path(__file__).parents[2] / "configs" / "ablate.py"

BODY = """
def variants():
    lost = case("no data", {"data.train": "jsonl:none.jsonl"})
    return chain(product(lost, seeds(1)), product(case("slow"), seeds(2)))
"""
SMALL = {"model__num_layers": 1, "train__steps": 2, "compress__method": "none", "infer__texts": ()}


def times(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_a_sweep_runs_what_is_missing_and_reports_what_fails(experiment, tmp_path, capsys, monkeypatch):
    begun = []

    def note(worker, entry, workdir):
        begun.append(entry.member.hash)
        begin(worker, entry, workdir)

    monkeypatch.setattr("lepton_jax.sweeps.conduct.begin", note)
    file, workdir = experiment(BODY, **SMALL), tmp_path / "sweep"
    config = AblateConfig(experiment=str(file))
    hashes = [member.hash for member in sweeps.load(file).members()]
    first = sweeps.ablate(AblateConfig(experiment=str(file), only="slow, seed 0"), workdir)
    assert first == {"runs": 3, "done": 1, "waiting": 2, "report": str(workdir / "report.html")}
    assert set(times(workdir)) == {hashes[1]} and begun == [hashes[1]]

    summary = sweeps.ablate(config, workdir)
    assert summary == {"runs": 3, "failed": 1, "done": 2, "report": str(workdir / "report.html")}
    assert set(times(workdir)) == set(hashes[1:]) and begun[1:] == [hashes[0], hashes[2]]
    told = capsys.readouterr().out
    assert "slow, seed 1 done" in told and "no data, seed 0 failed: " in told
    failures = json.loads((workdir / "failures.json").read_text())
    assert set(failures) == {hashes[0]} and "none.jsonl" in failures[hashes[0]]
    page = (workdir / "report.html").read_text()
    assert "Does it matter?" in page and "none.jsonl" in page and hashes[1] in page

    cost.show("costs", *_entries(file, workdir))
    shown = capsys.readouterr().out
    assert "1 of 3 runs to do" in shown and "by 2 runs that are complete" in shown
    (_, first, *_), _ = _entries(file, workdir)
    found = plan.dry_run(first.member.config, [plan.make_mesh(first.member.config, "config")])
    assert cost.flops(first.member) == found["finetune.flops_per_token"] * 16 * 16 * 2  # tokens, rows, steps


def _entries(file: Path, workdir: Path):
    from lepton_jax.sweeps.progress import Entry

    entries = [Entry(member, workdir / member.hash) for member in sweeps.load(file).members()]
    for entry in entries:
        entry.look("finetune.accuracy")
    return entries, [entry for entry in entries if entry.state != "done"]


LONG = SMALL | {"train__steps": 3000, "checkpoint__every": 50, "evaluate__every": 3000, "train__log_every": 50}


def wait_for(path: Path, log: Path) -> None:
    """Returns when a path is there."""
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text() if log.exists() else "the run has not begun")


def test_a_command_that_is_stopped_has_its_runs_save(experiment, tmp_path):
    file, workdir = experiment("def variants():\n    return seeds(2)", **LONG), tmp_path / "sweep"
    members = sweeps.load(file).members()
    folder, log = workdir / members[0].hash, workdir / "logs" / f"{members[0].hash}.txt"
    command = [f"--config={ABLATE}:{file}", f"--workdir={workdir}"]
    with subprocess.Popen(
        [sys.executable, "-m", "lepton_jax.main", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(folder / "checkpoints" / "50", log)
        process.terminate()
        told = process.communicate(timeout=120)[0]
    assert process.returncode == 0, told
    assert "steps are done and saved" in log.read_text()
    assert f"{members[0].hash} parent, seed 0 stopped" in told and f"{members[1].hash} parent, seed 1 stopped" in told
    assert not (folder / "summary.json").exists() and not (workdir / members[1].hash).exists()


def test_a_run_whose_process_is_killed_has_failed_and_says_how(experiment, tmp_path):
    member = sweeps.load(experiment("def variants():\n    return seeds(1)", **LONG)).members()[0]
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    worker = Worker()
    worker.start("job", member.config, folder, log)
    wait_for(folder / "checkpoints" / "50", log)
    os.kill(worker._process.pid, signal.SIGKILL)
    assert wait([worker], 60) == [worker]
    killed = worker.outcome()
    assert killed.state == "failed" and "signal 9" in killed.reason and "memory" in killed.reason
    assert worker.job is None
    worker.close()


def test_two_processes_do_not_train_in_one_folder(experiment, tmp_path, monkeypatch):
    """Such as two jobs of a cluster, of which the one was thought to be lost."""
    member = sweeps.load(experiment("def variants():\n    return seeds(1)")).members()[0]
    begun, outcomes = threading.Event(), []
    monkeypatch.setattr("lepton_jax.stages.run", lambda config, folder: begun.set())
    other = threading.Thread(target=lambda: outcomes.append(run_alone(member.config, tmp_path / "run")))
    with locked(tmp_path / "run"):
        other.start()
        other.join(1)
        assert other.is_alive() and not begun.is_set()
    other.join(60)
    assert begun.is_set() and outcomes == [Outcome("done")]


def test_a_worker_of_a_gpu_sees_no_other(monkeypatch):
    workers = crew_of(AblateConfig(gpus=("0", "3"), workers=5))
    assert [worker._gpu for worker in workers] == ["0", "3"] and len(crew_of(AblateConfig(workers=5))) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    ours, theirs = multiprocessing.Pipe()
    before = signal.getsignal(signal.SIGINT)
    try:
        for gpu, seen in (("", "7"), ("3", "3")):
            ours.send(None)
            _serve(theirs, gpu)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_commands_do_not_share_a_folder(experiment, tmp_path):
    with (
        exclusive(tmp_path / "sweep"),
        pytest.raises(UserError, match="another command is at work on it"),
        exclusive(tmp_path / "sweep"),
    ):
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a single run"), exclusive(tmp_path / "run"):
        pass


def test_commands_are_printed_for_other_machines(experiment, tmp_path, capsys):
    file = experiment("def variants():\n    return seeds(2)")
    template = "ssh tpu-{index} --command={quoted}"
    config = AblateConfig(experiment=str(file), where="commands", template=template)
    assert sweeps.ablate(config, tmp_path / "sweep") == {"runs": 2, "waiting": 2}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("ssh tpu-1 --command='python -m lepton_jax.main --config=")
    assert not (tmp_path / "sweep").exists()
    for wrong in ("no command", "{command} {other}", "{command} {"):
        with pytest.raises(UserError, match=r"config\.template="):
            sweeps.ablate(AblateConfig(experiment=str(file), where="commands", template=wrong), tmp_path / "sweep")
    with pytest.raises(UserError, match=r"config\.only='x': names no run; there is 'parent, seed 0'"):
        sweeps.ablate(AblateConfig(experiment=str(file), only="x"), tmp_path / "sweep")


def test_jobs_of_submitit_are_the_same_runs(experiment, tmp_path):
    """Its local executor pickles, starts and collects jobs as that of Slurm does."""
    pytest.importorskip("submitit")
    file, workdir = experiment(BODY, **SMALL), tmp_path / "sweep"
    config = AblateConfig(experiment=str(file), where="slurm", slurm=SlurmConfig(cluster="local", minutes=5, cpus=1))
    summary = sweeps.ablate(config, workdir)
    assert summary["done"] == 2 and summary["failed"] == 1
    assert set(json.loads((workdir / "jobs.json").read_text())) == {each.hash for each in sweeps.load(file).members()}
    before = times(workdir)
    assert len(before) == 2 and sweeps.ablate(config, workdir)["done"] == 2 and times(workdir) == before
    bad = AblateConfig(experiment=str(file), where="slurm", slurm=SlurmConfig(cluster="local", extra=("qos",)))
    with pytest.raises(UserError, match="NAME=VALUE"):
        sweeps.ablate(bad, workdir)
    if shutil.which("srun") is None:
        with pytest.raises(UserError, match=r"config\.slurm: cannot be submitted .*srun"):
            sweeps.ablate(AblateConfig(experiment=str(file), where="slurm"), tmp_path / "other")


def test_the_command_ends_with_code_1_where_a_run_failed_and_2_for_a_mistake(experiment, tmp_path):
    def run(file: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [f"--config={ABLATE}:{file}", f"--workdir={tmp_path / 'sweep'}", *more]
        return subprocess.run(
            [sys.executable, "-m", "lepton_jax.main", *command], capture_output=True, text=True, check=False
        )

    wrong = run(experiment('def variants():\n    return vary("train.stepz", 1)'))
    assert wrong.returncode == 2 and wrong.stderr.startswith("lepton_jax: error:") and "train.stepz" in wrong.stderr
    lost = run(experiment(BODY, **SMALL), "--config.only=no data")
    assert lost.returncode == 1 and "failed: " in lost.stdout and "more in" in lost.stdout


def test_steps_are_counted_over_the_parts_of_a_run():
    assert done_steps([]) == 0
    assert done_steps([{"step": 1}, {"step": 20}]) == 20
    assert done_steps([{"step": 1}, {"step": 20}, {"step": 20}, {"step": 1}, {"step": 6}]) == 26
