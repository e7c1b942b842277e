"""Texts tokenised once, by several processes, into shards on disk.

    CACHE/encoded/KEY/00000-of-00003.array_record   rows of token ids, a record each (ArrayRecord)
    CACHE/encoded/KEY/lengths.npy                   int32: tokens of every row, over all shards
    CACHE/encoded/KEY/index.json                    counts, sizes and sums; written last: with it, all is there

KEY is a hash of the tokenizer, the length and the texts. Which texts a shard holds depends on the texts alone, so a
process that was killed leaves whole shards, and the next one makes those that are missing. Worker processes import
this module, and must not load JAX: nothing here does.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, content_hash, locked, replacing
from lepton_jax.data.rows import TokenRows
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.disk import failed_write

INDEX, LENGTHS = "index.json", "lengths.npy"
_FORMAT = 1
_SHARD_BYTES = 4 << 20  # of text: what a kill can cost; a large corpus has larger ones, at most _MOST_SHARDS
_MOST_SHARDS = 1024
_WORTH_A_PROCESS = 16 << 20  # bytes of text; for less, starting one takes longer than it saves
# One record a chunk, for random access; compressing saves a quarter and makes writing nine times as slow.
_WRITER = "group_size:1,uncompressed"

_Settings = tuple[Tokenizer, int, bool, str]  # tokenizer, max_length, special_at_cuts, dtype of the numbers on disk
_Description = tuple[dict[str, Any], np.ndarray]  # a shard's entry in the index, and the lengths of its rows
_Work = Callable[[Mapping[Path, Sequence[str]]], Iterator[tuple[Path, _Description]]]


def encode_documents(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    cache: str = "",
    workers: int = 1,
    quiet: bool = True,
    special_at_cuts: bool = True,
) -> TokenRows:
    """Returns int32 [n] rows with the tokenizer's special tokens, n <= max_length, for language models.

    A document that is too long is cut into consecutive rows; one without tokens gives none. A second call with the
    same tokenizer, length and texts reads them from the cache, after a check of their SHA-256 sums.

    Args:
      tokenizer: cuts the texts.
      texts: the documents.
      max_length: of a row, special tokens included.
      cache: see `cache_folder`.
      workers: processes that share the work where there is enough of it; 0: one for each core. They import the
        caller's main module, whose work must therefore stand below `if __name__ == "__main__"`.
      quiet: shows no progress.
      special_at_cuts: whether each row of a document that is cut has the special tokens around it, as masked LM wants;
        False: they are where the document begins and ends alone, so that a causal LM learns no end where there is none.

    Raises:
      UserError: a file in the cache is not as it was written; a disk that is full; a worker that was killed.
    """
    key = content_hash(("rows", _FORMAT, tokenizer.fingerprint, max_length, special_at_cuts), texts)
    folder = cache_folder(cache) / "encoded" / key
    if not (folder / INDEX).exists():
        with locked(folder):
            if not (folder / INDEX).exists():
                _encode(tokenizer, texts, max_length, folder, workers, quiet, special_at_cuts)
    return _open(folder)


def _encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    folder: Path,
    workers: int,
    quiet: bool,
    special_at_cuts: bool,
) -> None:
    """Makes the shards of a folder that are missing, and its index."""
    for path in folder.glob(".*.array_record"):
        path.unlink()  # of a process that was killed
    sizes = [len(text.encode()) for text in texts]
    pieces = _pieces(sizes)
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    jobs = {folder / f"{n:05d}-of-{len(pieces):05d}.array_record": piece for n, piece in enumerate(pieces)}
    found: dict[Path, _Description] = {}
    for path in jobs:
        with contextlib.suppress(OSError, RuntimeError):  # it is missing, or another program's: made anew
            description = _describe(path, dtype)
            if description[0]["rows"]:  # ArrayRecord takes a file that was cut short for an empty one
                found[path] = description
    missing = {path: piece for path, piece in jobs.items() if path not in found}
    left = sum(sum(sizes[piece.start : piece.stop]) for piece in missing.values())
    count = min(workers or _cores(), len(missing), max(left // _WORTH_A_PROCESS, 1))
    settings = (tokenizer, max_length, special_at_cuts, dtype)
    work = _in_processes(settings, count) if count > 1 else _here(settings)
    with _progress(left, quiet) as advance:
        for path, description in work({path: texts[piece.start : piece.stop] for path, piece in missing.items()}):
            found[path] = description
            advance(sum(sizes[missing[path].start : missing[path].stop]))
    shards, lengths = [found[path][0] for path in jobs], [found[path][1] for path in jobs]
    with replacing(folder / LENGTHS) as temporary:
        np.save(temporary, np.concatenate([np.zeros(0, np.int32), *lengths]))
    index = {
        "format": _FORMAT, "tokenizer": tokenizer.fingerprint, "max_length": max_length, "dtype": dtype,
        "documents": len(texts), "text_bytes": sum(sizes), "rows": sum(map(len, lengths)),
        "tokens": sum(int(each.sum()) for each in lengths), "shards": shards, "lengths": _sums(folder / LENGTHS),
    }  # fmt: skip
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pieces(sizes: Sequence[int]) -> list[range]:
    """Returns consecutive ranges of texts for the shards, given the bytes of each text."""
    starts = np.cumsum([0, *sizes], dtype=np.int64)
    numbers = starts[:-1] // max(_SHARD_BYTES, starts[-1] // _MOST_SHARDS)
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(sizes)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop]


def _write_shard(settings: _Settings, path: Path, texts: Sequence[str]) -> _Description:
    """Tokenises texts into one shard, and returns its description."""
    tokenizer, max_length, special_at_cuts, dtype = settings
    room = max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))

    def rows(ids: np.ndarray) -> Iterator[np.ndarray]:
        if special_at_cuts or not len(ids):
            yield from (tokenizer.with_specials(ids[start : start + room]) for start in range(0, len(ids), room))
        else:
            whole = tokenizer.with_specials(ids)
            yield from (whole[start : start + max_length] for start in range(0, len(whole), max_length))

    try:
        with replacing(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), _WRITER)
            for ids in tokenizer.encode(texts):
                for row in rows(ids):
                    writer.write(row.astype(dtype).tobytes())
            writer.close()
            with open(temporary, "rb") as file:  # before it has its name, also where the power fails
                os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # ArrayRecord's own
        raise failed_write(path, error, "the shards beside it are kept") from error
    return _describe(path, dtype)


def _describe(path: Path, dtype: str) -> _Description:
    """Returns the entry of a shard in the index, and int32 [rows]: the lengths of its rows."""
    sums = _sums(path)
    reader = ArrayRecordReader(str(path))
    records = reader.read_all() if reader.num_records() else []
    lengths = np.fromiter(map(len, records), np.int32, len(records)) // np.dtype(dtype).itemsize
    return {**sums, "rows": len(records)}, lengths


def _sums(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _open(folder: Path) -> TokenRows:
    """Returns the rows of a folder, after comparing each file with the index."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for entry in (*index["shards"], index["lengths"]):
        path, reason = folder / entry["file"], ""
        if not path.exists():
            reason = "is missing"
        elif path.stat().st_size != entry["bytes"]:
            reason = f"is damaged ({path.stat().st_size} bytes instead of {entry['bytes']})"
        elif _sums(path)["sha256"] != entry["sha256"]:
            reason = f"is damaged (its sha256 is not that of {INDEX})"
        if reason:
            raise UserError(f"{path}: {reason}; delete the folder {folder}, and the same command tokenises again")
    ends = np.cumsum([entry["rows"] for entry in index["shards"]])
    lengths = np.split(np.load(folder / LENGTHS, allow_pickle=False), ends[:-1]) if len(ends) else []
    return TokenRows([folder / entry["file"] for entry in index["shards"]], lengths, index["dtype"], folder.name)


# Who does the work: this process, or others.

_settings: _Settings  # of a worker process


def _here(settings: _Settings) -> _Work:
    def work(jobs: Mapping[Path, Sequence[str]]) -> Iterator[tuple[Path, _Description]]:
        for path, texts in jobs.items():
            yield path, _write_shard(settings, path, texts)

    return work


def _in_processes(settings: _Settings, count: int) -> _Work:
    def work(jobs: Mapping[Path, Sequence[str]]) -> Iterator[tuple[Path, _Description]]:
        # Not a fork: this process has threads of JAX.
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker, (settings,))
        try:
            running = {pool.submit(_work_there, path, texts): path for path, texts in jobs.items()}
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that tokenises has ended, killed or out of memory; its finished shards are kept: give the "
                "same command again, with a smaller config.mesh.workers if memory was short"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    return work


def _start_worker(settings: _Settings) -> None:
    global _settings
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _settings = settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # it was killed: nobody would end this process otherwise

    threading.Thread(target=watch, daemon=True).start()


def _work_there(path: Path, texts: Sequence[str]) -> _Description:
    return _write_shard(_settings, path, texts)


@contextlib.contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told of the bytes that are done: a bar on a terminal, and one line at the end."""
    import rich.console
    import rich.progress

    console, start = rich.console.Console(), time.perf_counter()
    bar = rich.progress.Progress(
        rich.progress.TextColumn("tokenising"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda done: bar.advance(task, done)
    if not quiet and total:
        seconds = time.perf_counter() - start
        print(f"tokenised {total / 1e6:,.1f} MB of text, {total / 1e6 / seconds:.1f} MB/s", flush=True)
