"""pip runs for real, on a folder of made packages instead of a registry."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from lepton_jax.core.errors import UserError
from lepton_jax.data.registry import fetch, read_member

pytestmark = pytest.mark.once


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the only source of packages; it holds lepton_toy 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "lepton_toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lepton_toy/data.txt", "good\n")
        wheel.writestr("lepton_toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lepton-toy\nVersion: 1.0\n")
        wheel.writestr(
            "lepton_toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("lepton_toy-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetch_downloads_once_and_then_needs_no_registry(index, tmp_path):
    wheel = index / "lepton_toy-1.0-py3-none-any.whl"
    digest = sha256(wheel)
    path = fetch("lepton-toy", "1.0", digest, str(tmp_path / "cache"))
    assert path == tmp_path / "cache/packages" / wheel.name
    assert read_member(path, "lepton_toy/data.txt") == b"good\n"
    wheel.unlink()
    assert fetch("lepton-toy", "1.0", digest, str(tmp_path / "cache")) == path
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", wheel.name]


def test_a_file_put_there_by_hand_is_taken(index, tmp_path):
    wheel = index / "lepton_toy-1.0-py3-none-any.whl"
    (tmp_path / "cache/packages").mkdir(parents=True)
    moved = wheel.rename(tmp_path / "cache/packages" / wheel.name)
    assert fetch("lepton-toy", "1.0", sha256(moved), str(tmp_path / "cache")) == moved


def test_the_registry_has_another_file(index, tmp_path):
    with pytest.raises(UserError, match=r"^lepton-toy==1\.0: the registry's file does not have sha256 0{64}"):
        fetch("lepton-toy", "1.0", "0" * 64, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache/packages").glob("*.whl"))


def test_the_registry_has_no_such_package(index, tmp_path):
    with pytest.raises(
        UserError, match=r"^lepton-toy==2\.0: pip cannot fetch it \(.+\).* put its file from .+packages$"
    ):
        fetch("lepton-toy", "2.0", "0" * 64, str(tmp_path / "cache"))


def test_the_registry_cannot_be_reached(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens on the discard port
    with pytest.raises(
        UserError, match=r"^lepton-toy==1\.0: pip cannot fetch it \(.+\); check the connection"
    ) as caught:
        fetch("lepton-toy", "1.0", "0" * 64, str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_no_pip(index, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"this Python has no pip; run `.+ -m ensurepip`"):
        fetch("lepton-toy", "1.0", "0" * 64, str(tmp_path / "cache"))


def test_a_damaged_file_in_the_cache_is_noticed_and_kept(index, tmp_path):
    digest = sha256(index / "lepton_toy-1.0-py3-none-any.whl")
    path = fetch("lepton-toy", "1.0", digest, str(tmp_path / "cache"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"^{path}: its sha256 is .+ not {digest}; delete"):
        fetch("lepton-toy", "1.0", digest, str(tmp_path / "cache"))
    assert path.exists()


def test_read_member_of_an_sdist(tmp_path):
    path = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        member = tarfile.TarInfo("toy-1.0/toy/data.txt")
        member.size = 4
        sdist.addfile(member, io.BytesIO(b"good"))
    assert read_member(path, "toy/data.txt") == b"good"
    with pytest.raises(KeyError):
        read_member(path, "toy/other.txt")
