"""Tokenising into shards: what comes back, what a kill leaves, and what is done about damage."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from letters import Letters

from lepton_jax.core.errors import UserError
from lepton_jax.data import rows as rows_module
from lepton_jax.data import shards, tokenizers
from lepton_jax.data.rows import TokenRows
from lepton_jax.data.shards import encode_documents

pytestmark = pytest.mark.once


TEXTS = ["abcdefghij", "", "klmn", "opqr" * 3, "s"]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 8)


@pytest.fixture
def encoded(monkeypatch):
    """The texts that were tokenised, shard by shard."""
    calls, encode = [], Letters.encode
    monkeypatch.setattr(Letters, "encode", lambda self, texts: calls.append(list(texts)) or encode(self, texts))
    return calls


def lists(rows):
    return [row.tolist() for row in rows]


def folder_of(cache: Path) -> Path:
    (folder,) = (cache / "encoded").iterdir()
    return folder


def test_long_documents_are_cut_and_nothing_is_lost(tmp_path):
    rows = encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    assert lists(rows[:3]) == [[2, 97, 98, 99, 100, 3], [2, 101, 102, 103, 104, 3], [2, 105, 106, 3]]
    assert all(len(row) <= 6 and row[0] == 2 and row[-1] == 3 and row.dtype == np.int32 for row in rows)
    assert "".join(map(chr, np.concatenate([row[1:-1] for row in rows]))) == "".join(TEXTS)
    assert rows.lengths.tolist() == list(map(len, rows)) and rows.lengths.dtype == np.int32
    assert lists([rows[-1]]) == [[2, ord("s"), 3]]
    with pytest.raises(IndexError):
        rows[len(rows)]
    for nothing in ([], ["", ""]):
        assert list(encode_documents(Letters(), nothing, 6, str(tmp_path))) == []


def test_special_tokens_may_be_where_documents_begin_and_end_alone(tmp_path):
    rows = encode_documents(Letters(), TEXTS, 6, str(tmp_path), special_at_cuts=False)
    assert lists(rows[:2]) == [[2, 97, 98, 99, 100, 101], [102, 103, 104, 105, 106, 3]]
    assert lists(rows) != lists(encode_documents(Letters(), TEXTS, 6, str(tmp_path)))
    joined = [token for row in lists(rows) for token in row]
    assert joined == [token for text in TEXTS if text for token in [2, *map(ord, text), 3]]
    assert list(encode_documents(Letters(), ["", ""], 6, str(tmp_path), special_at_cuts=False)) == []


@pytest.mark.parametrize("vocabulary", [1 << 16, (1 << 16) + 1])
def test_ids_of_any_vocabulary_come_back(tmp_path, monkeypatch, vocabulary):
    monkeypatch.setattr(Letters, "vocab_size", vocabulary)
    monkeypatch.setattr(Letters, "encode", lambda self, texts: [np.array([5, vocabulary - 1], np.int32)] * len(texts))
    rows = encode_documents(Letters(), ["a"], 6, str(tmp_path))
    assert lists(rows) == [[2, 5, vocabulary - 1, 3]] and rows[0].dtype == np.int32


@pytest.mark.parametrize("in_memory", [False, True])
def test_many_shards_hold_what_one_holds(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(rows_module, "_IN_MEMORY", 1 << 20 if in_memory else 0)
    texts = [text * 3 for text in TEXTS * 5]
    whole = encode_documents(Letters(), texts, 6, str(tmp_path / "a"))
    monkeypatch.setattr(shards, "_SHARD_BYTES", 50)
    parts = encode_documents(Letters(), texts, 6, str(tmp_path / "b"))
    files = [len(list(folder_of(tmp_path / name).glob("*.array_record"))) for name in "ab"]
    assert files[0] == 1 and files[1] > 5
    assert lists(whole) == lists(parts) and whole.fingerprint == parts.fingerprint
    order = np.random.default_rng(0).permutation(len(parts)).tolist()
    assert lists(parts.read(order)) == [lists(whole)[row] for row in order]
    joined = TokenRows.join([parts, whole])
    assert lists(joined) == 2 * lists(whole) and joined.lengths.tolist() == 2 * whole.lengths.tolist()
    assert len({joined.fingerprint, TokenRows.join([whole]).fingerprint, whole.fingerprint}) == 2


def test_the_cache_knows_texts_length_and_tokenizer(tmp_path, monkeypatch, encoded):
    first = encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    again = encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    assert len(encoded) == 1 and lists(first) == lists(again)
    encode_documents(Letters(), TEXTS, 7, str(tmp_path))
    encode_documents(Letters(), TEXTS[:1], 6, str(tmp_path))
    monkeypatch.setattr(Letters, "fingerprint", "other")
    encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    assert len(encoded) == 4


def test_the_index_counts(tmp_path, small_shards):
    rows = encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    index = json.loads((folder_of(tmp_path) / "index.json").read_text())
    assert index["documents"] == 5 and index["text_bytes"] == 27 and index["rows"] == len(rows) == 8
    assert index["tokens"] == rows.lengths.sum() == 27 + 2 * 8
    assert sum(entry["rows"] for entry in index["shards"]) == 8 and len(index["shards"]) > 1


def test_what_a_killed_process_finished_is_not_done_again(tmp_path, small_shards, encoded, monkeypatch):
    straight = encode_documents(Letters(), TEXTS, 6, str(tmp_path / "straight"))
    count, write = len(encoded), shards._write_shard
    assert count == 3
    encoded.clear()

    def killed(*arguments):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(shards, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_documents(Letters(), TEXTS, 6, str(tmp_path / "killed"))
    folder = folder_of(tmp_path / "killed")
    done = sorted(folder.glob("*.array_record"))
    assert len(done) == 2 and not (folder / "index.json").exists()
    done[1].write_bytes(done[1].read_bytes()[:-5])  # by a power failure: no whole shard after all
    (folder / ".00002-of-00003.array_record.1234.array_record").touch()
    monkeypatch.setattr(shards, "_write_shard", write)
    encoded.clear()
    resumed = encode_documents(Letters(), TEXTS, 6, str(tmp_path / "killed"))
    assert len(encoded) == 2 and lists(resumed) == lists(straight)
    assert not list(folder.glob(".*.array_record"))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("00001-of-00003.array_record", lambda data: data[:-1], r"is damaged \(\d+ bytes instead of \d+\)"),
        ("00001-of-00003.array_record", lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:],
         r"is damaged \(its sha256 is not that of index\.json\)"),
        ("lengths.npy", lambda data: data[:-1] + b"\1", r"is damaged \(its sha256 is not that of index\.json\)"),
        ("00000-of-00003.array_record", None, "is missing"),
    ],
)  # fmt: skip
def test_damage_is_named_with_what_to_do(tmp_path, small_shards, file, damage, message):
    encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    path = folder_of(tmp_path) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path}: {message}; delete the folder {path.parent}, and") as caught:
        encode_documents(Letters(), TEXTS, 6, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *arguments):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device; writing 00000; at byte 0")

    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    message = r"00000-of-00001\.array_record: cannot be written \(No space left on device\); .*; make space, then give"
    with pytest.raises(UserError, match=message):
        encode_documents(Letters(), TEXTS, 6, str(tmp_path))


def test_a_document_of_ten_million_characters(tmp_path):
    class Array(Letters):  # fast enough for that
        def encode(self, texts):
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    rows = encode_documents(Array(), ["a", "bc" * 5_000_000, "d"], 512, str(tmp_path))
    assert rows.lengths[0] == rows.lengths[-1] == 3 and rows.lengths.sum() == 10_000_002 + 2 * len(rows)
    assert (rows.lengths[1:-2] == 512).all() and rows[-2][-2] == ord("c")


# With processes.

SCRIPT = """
import fcntl, os, sys, time
from lepton_jax.data import shards, tokenizers
shards._WORTH_A_PROCESS, shards._SHARD_BYTES = 1, 150_000
if sys.argv[4:]:  # here and, because this file is imported there, in the workers
    write, held = shards._write_shard, []
    def slow(*arguments):
        if not held:  # a file that is locked as long as this process lives
            held.append(open(f"{sys.argv[4]}/{os.getpid()}", "w"))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        time.sleep(0.1)
        return write(*arguments)
    shards._write_shard = slow
if __name__ == "__main__":
    cache, tokenizer, workers = sys.argv[1], tokenizers.load(sys.argv[2]), int(sys.argv[3])
    texts = [f"{number} some words of a text {number * 7919} " * 40 for number in range(1500)]
    rows = shards.encode_documents(tokenizer, texts, 64, cache, workers)
    print(len(rows), int(rows.lengths.sum()), "jax" in sys.modules)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory, corpus, cache):
    """Returns a function that starts the tokenising of 2 MB of text in a process of its own."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT)
    tokenizer = tokenizers.train((corpus / "text.txt").read_text().split("\n\n"), size=400, cache=cache)
    tokenizer.save(folder / "tokenizer")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}

    def start(cache: Path, workers: int, *slow: str) -> subprocess.Popen[str]:
        for held in slow:
            Path(held).mkdir()
        line = [sys.executable, str(folder / "script.py"), str(cache), str(folder / "tokenizer"), str(workers), *slow]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def lives(worker: Path) -> bool:
    """Tells whether the process whose file this is still holds it."""
    with open(worker) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def at_work(process: subprocess.Popen[str], cache: Path, workers: Path) -> list[Path]:
    """Waits until both workers have begun and three shards are written; returns the files of the workers."""
    while len(found := list(workers.iterdir())) < 2 or len(list(cache.glob("encoded/*/[0-9]*.array_record"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def test_a_worker_that_is_killed_ends_the_work_with_a_line(script, tmp_path):
    process = script(tmp_path, 2, str(tmp_path / "workers"))
    worker, _ = at_work(process, tmp_path, tmp_path / "workers")
    os.kill(int(worker.name), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("lepton_jax.core.errors.UserError: a process that tokenises has ended, ")


def test_two_processes_killed_and_resumed_leave_what_one_leaves(script, tmp_path):
    killed = script(tmp_path / "killed", 2, str(tmp_path / "workers"))
    workers = at_work(killed, tmp_path / "killed", tmp_path / "workers")
    assert all(map(lives, workers))
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 20
    while running := [worker.name for worker in workers if lives(worker)]:
        assert time.monotonic() < deadline, f"{running} go on for a dead parent"
        time.sleep(0.01)
    folder = folder_of(tmp_path / "killed")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.array_record")}
    assert len(before) >= 3 and not (folder / "index.json").exists()
    outputs = []
    for name, count in (("killed", 2), ("straight", 1)):
        process = script(tmp_path / name, count)
        out, errors = process.communicate()
        assert process.returncode == 0 and errors == ""
        outputs.append(out)
    assert outputs[0] == outputs[1] and outputs[0].endswith(" False\n")
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.array_record")}
    assert before.items() <= after.items() and len(after) > len(before), "only what was missing was made"
    files = [
        {path.name: path.read_bytes() for path in folder_of(tmp_path / name).iterdir()}
        for name in ("killed", "straight")
    ]
    assert files[0] == files[1]
