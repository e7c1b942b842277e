from __future__ import annotations

import subprocess
import sys
import time

import pytest

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, content_hash, locked, replacing

pytestmark = pytest.mark.once


def test_cache_folder_prefers_the_argument_then_the_environment_then_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LEPTON_JAX_CACHE", str(tmp_path / "environment"))
    assert cache_folder(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_folder("") == tmp_path / "environment"
    monkeypatch.delenv("LEPTON_JAX_CACHE")
    assert cache_folder("") == tmp_path / "home/.cache/lepton_jax"
    assert (tmp_path / "home/.cache/lepton_jax").is_dir()


def test_a_cache_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache=.*file/below.*Not a directory") as caught:
        cache_folder(str(tmp_path / "file/below"))
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # permissions do not stop root
    with pytest.raises(UserError, match=r"data\.cache=.*: cannot be written to; choose another"):
        cache_folder(str(tmp_path))


def test_replacing_writes_all_or_nothing(tmp_path):
    path = tmp_path / "folder/data.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half of the ne")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]


HOLDER = """
import sys, time
from pathlib import Path
from lepton_jax.data.cache import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(0.5)
"""


def test_locked_waits_for_another_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        begin = time.perf_counter()
        with locked(tmp_path):
            waited = time.perf_counter() - begin
    assert waited > 0.2


def test_content_hash_tells_texts_and_settings_apart():
    hashes = {content_hash("a"), content_hash("b"), content_hash("a", ["xy"]), content_hash("a", ["x", "y"])}
    assert len(hashes) == 4
    assert content_hash("a", iter(["x", "y"])) == content_hash("a", ["x", "y"])
