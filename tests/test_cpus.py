"""That a process starts itself anew once, with the same command, where it helps; and with how many threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_jax import cpus

pytestmark = pytest.mark.once

SCRIPT = """
import os, sys
from lepton_jax import cpus
cpus._MODE = __import__("pathlib").Path(sys.argv[1])
print("start", flush=True)
cpus.prepare()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
"""


@pytest.fixture
def mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file such as the kernel's, which says that processes get huge pages on request."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return path


def run(mode: Path) -> list[str]:
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT, str(mode), "a b", "--flag=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_the_same_command_starts_once_more(mode: Path) -> None:
    *starts, last = run(mode)
    assert starts == ["start", "start"]
    assert last == f"glibc.malloc.hugetlb=1 ['{mode}', 'a b', '--flag=1']"


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_nothing_starts_anew_where_it_would_not_help(mode: Path, text: str | None) -> None:
    mode.unlink() if text is None else mode.write_text(text)
    assert run(mode)[0] == "start" and run(mode)[1].startswith("None ")


def test_the_environment_decides(mode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert run(mode)[0] == "start" and run(mode)[1].startswith(" [")


def test_the_process_stays_the_same(mode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cpus, "_MODE", mode)
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=900")
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    cpus.prepare()
    assert os.environ.pop("GLIBC_TUNABLES") == "glibc.malloc.hugetlb=1"
    assert calls == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["PJRT_NPROC"] == "3600", "as the process that it becomes will have it"


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=800"}, "3200"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=9 --xla_force_host_platform_device_count=700"}, "2800"),
        ({"JAX_NUM_CPU_DEVICES": "600"}, "2400"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=800", "PJRT_NPROC": "5"}, "5"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "-1"}, None),
        ({}, None),
    ],
)
def test_simulated_devices_get_threads(
    variables: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PJRT_NPROC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cpus.spare_threads()
    assert os.environ.get("PJRT_NPROC") == threads
