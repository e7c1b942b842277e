"""Disks that are full or read-only: the command stops with one line that says so, and goes on once that is mended."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lepton_jax import hub, report, stages
from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import CheckpointConfig, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.disk import failed_write, writing
from lepton_jax.train.logging import read_metrics

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
# Starts a command that may not write where permissions forbid it: root, whom they do not stop, loses that privilege
# (PR_CAPBSET_DROP of CAP_DAC_OVERRIDE). No file that it writes may be larger than a limit, or -1.
LAUNCH = """
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def start(file: str, folder: Path, limit: int = -1) -> subprocess.Popen[str]:
    command = ["-m", "lepton_jax.main", f"--config={file}", f"--workdir={folder}"]
    line = [sys.executable, "-c", LAUNCH, str(limit), *command]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def end(process: subprocess.Popen[str], code: int) -> str:
    """Returns the one line that a run which ends with a code wrote to stderr."""
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    if code == 2:
        assert errors.startswith("lepton_jax: error: ") and errors.count("\n") == 1, errors
    return errors


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.005)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the words


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make space"), (errno.EDQUOT, "make space"), (errno.EFBIG, "make space"),
     (errno.EROFS, "make it writable"), (errno.EACCES, "make it writable"), (errno.EIO, "mend that")],
)  # fmt: skip
def test_a_failed_write_names_the_cause_and_the_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    cause = os.strerror(number)
    with pytest.raises(UserError) as caught, writing(tmp_path / "file"):
        raise OSError(number, cause, "elsewhere")
    assert (
        str(caught.value) == f"{tmp_path}/file: cannot be written ({cause}); {remedy}, then give the same command again"
    )
    assert isinstance(caught.value.__cause__, OSError)
    if remedy != "mend that":  # TensorStore, too, repeats the system's words
        error = ValueError(f"RESOURCE_EXHAUSTED: Error writing array: {cause} [os_error_code='{number}']\nmore")
        assert f"a: cannot be written ({cause}); the rest is well; {remedy}" in str(
            failed_write("a", error, "the rest is well")
        )


# --- the command


def test_a_disk_that_fills_up_stops_the_run_which_then_ends_as_undisturbed(recipe: Any, tmp_path: Path) -> None:
    file = recipe(
        "pretrain", train__steps=60, train__log_every=1, checkpoint__every=5, checkpoint__keep=2, evaluate__every=25
    )
    straight, folder = tmp_path / "straight", tmp_path / "run"
    end(start(file, straight), 0)
    running = start(file, folder)
    wait_for(folder / "checkpoints" / "5", running)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))  # less than the arrays take
    line = end(running, 2)
    assert re.search(
        rf"{folder}/checkpoints/\d+: cannot be written \(File too large\); earlier steps are untouched; make space, "
        "then give the same command again$",
        line.rstrip(),
    )
    with Checkpoints(folder / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        assert 5 <= (checkpoints.latest() or 0) < 60 and not (folder / "summary.json").exists()

    end(start(file, folder), 0)
    found, wanted = (read_metrics(one, timed=False) for one in (folder, straight))
    assert found == wanted and wanted[-1]["step"] == 60
    jax.tree.map(np.testing.assert_array_equal, hub.load(folder).params, hub.load(straight).params)


def test_a_disk_that_is_full_at_the_start(recipe: Any, tmp_path: Path) -> None:
    line = end(start(recipe("pretrain"), tmp_path / "run", limit=1000), 2)
    assert "run/config.json: cannot be written (File too large); make space, then give the same command again" in line
    assert contents(tmp_path / "run") == {}


def test_a_folder_that_is_read_only_at_the_start(recipe: Any, tmp_path: Path, quickstart: Path) -> None:
    file, folder = recipe("pretrain"), tmp_path / "run"
    folder.mkdir(mode=0o555)
    line = end(start(file, folder), 2)
    assert f"{folder}/config.json: cannot be written (Permission denied); make it writable, then give the same" in line
    folder.chmod(0o755)
    shutil.copytree(quickstart / "pretrain", folder, dirs_exist_ok=True)
    (folder / "summary.json").unlink()
    before = contents(folder)
    folder.chmod(0o555)
    (folder / "tokenizer").chmod(0o555)
    try:
        assert f"{folder}: cannot be written (Permission denied); make it writable, then" in end(start(file, folder), 2)
    finally:
        folder.chmod(0o755)
        (folder / "tokenizer").chmod(0o755)
    assert contents(folder) == before


def test_a_folder_that_becomes_read_only_stops_the_run(recipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Far enough apart that the next save has not begun: it is the making of its folder that fails.
    running = start(recipe("pretrain", train__steps=100_000, checkpoint__every=40, checkpoint__keep=2), folder)
    wait_for(folder / "checkpoints" / "40", running)
    (folder / "checkpoints").chmod(0o555)
    line = end(running, 2)
    (folder / "checkpoints").chmod(0o755)
    cause = "cannot be written (Permission denied); earlier steps are untouched; make it writable, then"
    assert f"{folder}/checkpoints/80: {cause}" in line
    with Checkpoints(folder / "checkpoints", CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [40]


# --- in this process


@pytest.mark.parametrize("name", ["report.html", "summary.json"])
def test_a_disk_that_is_full_after_training(
    quickstart: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, config = tmp_path / "run", resolve(tiny_config("quickstart").pretrain)
    shutil.copytree(quickstart / "pretrain", folder)
    wanted = json.loads((folder / "summary.json").read_text())
    for file in ("summary.json", "report.html"):
        (folder / file).unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def last_space(*arguments: Any) -> None:
        if name == "summary.json":
            write_report(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        if name == "report.html":
            write_report(*arguments)

    write_report = report.write_report
    try:
        with monkeypatch.context() as patch:
            patch.setattr(report, "write_report", last_space)
            with pytest.raises(UserError, match=rf"run/{name}: cannot be written \(File too large\); make space, then"):
                stages.run(config, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (folder / "summary.json").exists()
    found = stages.run(config, folder)
    assert found | {"wall_seconds": 0} == wanted | {"wall_seconds": 0} and (folder / "report.html").exists()
