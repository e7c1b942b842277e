"""Sweeps that really run: what is missing, once; what fails, without stopping the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lepton_jax import sweeps
from lepton_jax.config import AblateConfig, SlurmConfig
from lepton_jax.core.errors import UserError
from lepton_jax.sweeps import cost
from lepton_jax.sweeps.conduct import exclusive
from lepton_jax.sweeps.crew import Worker, wait
from lepton_jax.sweeps.progress import done_steps

pytestmark = pytest.mark.once

BODY = """
def variants():
    lost = case("no data", {"data.train": "jsonl:none.jsonl"})
    return chain(product(case("slow"), seeds(2)), product(lost, seeds(1)))
"""
SMALL = {"model__num_layers": 1, "train__steps": 2, "compress__method": "none", "infer__texts": ()}


def times(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_a_sweep_runs_what_is_missing_and_reports_what_fails(experiment, tmp_path, capsys):
    file, workdir = experiment(BODY, **SMALL), tmp_path / "sweep"
    config = AblateConfig(experiment=str(file))
    hashes = [member.hash for member in sweeps.load(file).members()]
    first = sweeps.ablate(AblateConfig(experiment=str(file), only="slow, seed 0"), workdir)
    assert first == {"runs": 3, "done": 1, "waiting": 2, "report": str(workdir / "report.html")}
    before = times(workdir)
    assert set(before) == {hashes[0]}

    summary = sweeps.ablate(config, workdir)
    assert summary == {"runs": 3, "done": 2, "failed": 1, "report": str(workdir / "report.html")}
    after = times(workdir)
    assert set(after) == set(hashes[:2]) and after[hashes[0]] == before[hashes[0]]
    told = capsys.readouterr().out
    assert "slow, seed 1 done" in told and "no data, seed 0 failed: " in told
    failures = json.loads((workdir / "failures.json").read_text())
    assert set(failures) == {hashes[2]} and "none.jsonl" in failures[hashes[2]]
    page = (workdir / "report.html").read_text()
    assert "Does it matter?" in page and "none.jsonl" in page and hashes[1] in page

    cost.show("costs", *_entries(file, workdir))
    shown = capsys.readouterr().out
    assert "1 of 3 runs to do" in shown and "by 2 runs that are complete" in shown


def _entries(file: Path, workdir: Path):
    from lepton_jax.sweeps.progress import Entry

    entries = [Entry(member, workdir / member.hash) for member in sweeps.load(file).members()]
    for entry in entries:
        entry.look("finetune.accuracy")
    return entries, [entry for entry in entries if entry.state != "done"]


def test_a_run_that_is_stopped_or_killed_goes_on_in_another_process(experiment, tmp_path):
    changes = SMALL | {"train__steps": 3000, "checkpoint__every": 50, "evaluate__every": 3000, "train__log_every": 50}
    member = sweeps.load(experiment("def variants():\n    return seeds(1)", **changes)).members()[0]
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    worker = Worker()

    def begin() -> None:
        worker.start("job", member.config, folder, log)
        for _ in range(600):
            if (folder / "checkpoints" / "50").exists():
                return
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def ended():
        assert wait([worker], 60) == [worker]
        return worker.outcome()

    begin()
    worker.stop()
    assert ended().state == "stopped" and worker.job is None
    saved = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())
    assert saved >= 50
    worker.start("job", member.config, folder, log)
    time.sleep(2)
    os.kill(worker._process.pid, signal.SIGKILL)
    killed = ended()
    assert killed.state == "failed" and "signal 9" in killed.reason and "memory" in killed.reason
    worker.close()
    assert "steps are done and saved" in log.read_text()


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
    recipe = Path(__file__).parents[2] / "configs" / "ablate.py"

    def run(file: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [f"--config={recipe}:{file}", f"--workdir={tmp_path / 'sweep'}", *more]
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
