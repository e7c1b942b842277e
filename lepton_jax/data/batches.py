"""From token ids to batches of numpy arrays, with Grain: shuffled, packed, sharded and resumable.

Which rows a batch has never depends on the number of processes: each takes its part of the same global batch. That
batch comes from one or several streams. Every process runs the streams that its part touches, so with one stream all
do the same work, and with a multiple of the processes none does another's.

A batch is a dict of arrays whose leading axis is rows:

    token_ids       int32 [B, T]
    attention_mask  int32 [B, T]  0 at padding; positions with the same value see each other (documents 1, 2, 3, ...)
    positions       int32 [B, T]  within the document; 0 at padding
    labels          int32 [B] (classes) or float32 [B] (numbers); absent without labels
    weight          float32 [B]   1, or 0 for a row that only fills the last evaluation batch
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, content_hash, replacing
from lepton_jax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]

# Rows that are filled at a time when packing. More leave less padding; 256 of 128 tokens leave about 1%.
PACKING_BINS = 256
_PREFETCHED_BATCHES = 4
_IN_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # rows are in memory: nothing to wait for


def encode_examples(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Returns int32 [n] of each text with the tokenizer's special tokens, cut at its end so that n <= max_length."""
    room = max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))
    # Not `tokenizer.rows`: that also finds where each token lies in its text, in several times the time.
    return [tokenizer.with_specials(ids[:room]) for ids in tokenizer.encode(texts)]


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], max_length: int, cache: str = "") -> list[np.ndarray]:
    """Returns int32 [n] rows with the tokenizer's special tokens, n <= max_length, for masked LM.

    A document that is too long is cut into consecutive rows; one without tokens gives none. The rows are
    views of one array, which the cache keeps by a hash of the tokenizer, the length and the texts.
    """
    key = content_hash(("documents", tokenizer.fingerprint, max_length), texts)
    path = cache_folder(cache) / "encoded" / f"{key}.npz"
    if not path.exists():
        step = max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))
        pieces = [ids[start : start + step] for ids in tokenizer.encode(texts) for start in range(0, len(ids), step)]
        rows = [tokenizer.with_specials(piece) for piece in pieces]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        tokens = np.concatenate([np.zeros(0, np.int32), *rows])
        with replacing(path) as temporary:
            np.savez(temporary, tokens=tokens, ends=ends)
    with np.load(path, allow_pickle=False) as stored:
        tokens, ends = stored["tokens"], stored["ends"]
    return np.split(tokens, ends[:-1]) if len(ends) else []


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Returns a hexadecimal hash of arrays in their order: of rows or labels."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def training_batches(
    rows: Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    labels: np.ndarray | None = None,
    pack: bool,
    seed: int,
    pad_id: int,
    streams: int = 1,
    parts: Sequence[slice] = (slice(None),),
    process_index: int = 0,
) -> Streams:
    """Returns an endless iterator over this process's part of the batches.

    Every epoch has another order, which the seed decides; every row occurs once in it. Stream s takes every
    `streams`-th row of the common order, packs it on its own, and gives rows [s, s + 1) * batch_size / streams of
    every batch.

    Args:
      rows: int32 [n] each, n <= max_length.
      batch_size: rows of a batch, over all processes.
      max_length: T.
      labels: [len(rows)], int32 or float32.
      pack: several rows of `rows`, isolated from each other, in one row of the batch (first fit).
      seed: of the order.
      pad_id: the token id at padding.
      streams: into how many parts the order is split; divides `batch_size`.
      parts: which rows of a batch each process takes, see `core.sharding.process_rows`.
      process_index: which process this is.

    Raises:
      UserError: there are fewer rows than one batch takes.
    """
    _check(rows, max_length, labels, pack)
    if batch_size % streams:
        raise ValueError(f"streams={streams} must divide batch_size={batch_size}")
    available = -(-sum(map(len, rows)) // max_length) if pack else len(rows)
    if available < batch_size:
        kind = f"rows of {max_length} tokens when packed" if pack else "rows"
        raise UserError(f"the training data fill {available} {kind}, fewer than one batch of {batch_size}; "
                        f"use more data or train.batch_size of at most {available}")  # fmt: skip
    order = grain.MapDataset.source(_Rows(rows, labels)).seed(seed).shuffle().repeat()
    size = batch_size // streams

    def stream(number: int) -> grain.DatasetIterator[Batch]:
        dataset: Any = order[number::streams].to_iter_dataset(_IN_THREAD)
        if pack:
            dataset = _packed(dataset, max_length, pad_id, seed).batch(size, batch_fn=_stack)
        else:
            dataset = dataset.batch(size, batch_fn=functools.partial(_pad, max_length=max_length, pad_id=pad_id))
        return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCHED_BATCHES))

    def touched(part: slice) -> set[int]:
        start, stop, _ = part.indices(batch_size)
        return set(range(start // size, -(-stop // size)))

    mine = sorted(touched(parts[process_index]))
    elsewhere = set().union(*map(touched, parts[:process_index]))
    start, stop, _ = parts[process_index].indices(batch_size)
    part = slice(start - mine[0] * size, stop - mine[0] * size)
    return Streams({number: stream(number) for number in mine}, streams, part, set(mine) - elsewhere)


class Streams(Iterator[Batch]):
    """The streams that a process runs, as one iterator over its part of the batches.

    `get_state` and `set_state` resume it exactly, in any process of any run with as many streams.
    """

    def __init__(
        self, running: Mapping[int, grain.DatasetIterator[Batch]], count: int, part: slice, kept: Iterable[int]
    ):
        """Joins the batches of consecutive streams.

        Args:
          running: number -> the iterator of a stream.
          count: how many streams there are in all processes.
          part: the rows that the process takes of all those that the running streams give.
          kept: the streams whose position this process writes into a checkpoint; of several that run the same
            stream, it is one's.
        """
        self._running, self._count, self._part = dict(running), count, part
        self.kept = frozenset(map(_state_name, kept))

    def __next__(self) -> Batch:
        return self.take(1)

    def take(self, count: int) -> Batch:
        """Returns this process's part of the next `count` batches made one, in which each stream still has its share.

        Rows are in the order of that batch, whatever the number of processes.
        """
        batches = [next(stream) for stream in self._running.values() for _ in range(count)]
        joined = batches[0]
        if len(batches) > 1:
            joined = {name: np.concatenate([batch[name] for batch in batches]) for name in joined}
        part = slice(self._part.start * count, self._part.stop * count)
        return {name: column[part] for name, column in joined.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the position of each running stream under its name, as JSON can hold it."""
        return {
            _state_name(number): {"streams": self._count, "position": stream.get_state()}
            for number, stream in self._running.items()
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the positions that `get_state` gave; names of streams that do not run here are ignored.

        Raises:
          UserError: they are of another number of streams.
        """
        for name in map(_state_name, self._running):
            if state.get(name, {}).get("streams") != self._count:
                raise UserError(f"data.streams={self._count}: the saved position of the data is another iterator's, "
                                f"with {', '.join(sorted(state)) or 'nothing'}")  # fmt: skip
        for number, stream in self._running.items():
            stream.set_state(state[_state_name(number)]["position"])

    def close(self) -> None:
        """Ends the threads that work ahead."""
        for stream in self._running.values():
            stream.close()


def _state_name(stream: int) -> str:
    return f"stream_{stream}"


def evaluation_batches(
    rows: Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    labels: np.ndarray | None = None,
    pack: bool,
    pad_id: int,
    parts: Sequence[slice] = (slice(None),),
    process_index: int = 0,
) -> Iterator[Batch]:
    """Yields this process's part of the batches of one pass, in order; each row is in exactly one batch.

    The last batch is filled up with rows of weight 0, all padding. The arguments are those of `training_batches`.
    """
    _check(rows, max_length, labels, pack)
    if not len(rows):
        return
    if pack:
        source = grain.MapDataset.source(_Rows(rows, None)).to_iter_dataset(_IN_THREAD)
        table = _stack(list(_packed(source, max_length, pad_id, None)))
    else:
        table = _pad(list(_Rows(rows, labels)), max_length, pad_id)
    first, stop, _ = parts[process_index].indices(batch_size)
    for start in range(0, len(table["weight"]), batch_size):
        batch = {name: column[start + first : start + stop] for name, column in table.items()}
        filler = {
            name: np.zeros((stop - first - len(part), *part.shape[1:]), part.dtype) for name, part in batch.items()
        }
        filler["token_ids"] += np.int32(pad_id)
        yield {name: np.concatenate([part, filler[name]]) for name, part in batch.items()}


class _Rows(Sequence[Batch]):
    """Rows as a Grain source of dicts."""

    def __init__(self, rows: Sequence[np.ndarray], labels: np.ndarray | None):
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        label = {} if self._labels is None else {"labels": self._labels[index]}
        return {"token_ids": self._rows[index], **label}

    def __repr__(self) -> str:  # Grain names the source in its logs
        return f"_Rows({len(self)})"


def _check(rows: Sequence[np.ndarray], max_length: int, labels: np.ndarray | None, pack: bool) -> None:
    longest = max(map(len, rows), default=0)
    if longest > max_length:
        raise UserError(f"a row has {longest} tokens, more than max_length={max_length}; encode the texts so")
    if labels is not None and (pack or len(labels) != len(rows)):
        raise ValueError(f"{len(labels)} labels, {len(rows)} rows, pack={pack}: one label a row, none when packing")


def _packed(dataset: Any, max_length: int, pad_id: int, seed: int | None) -> Any:
    """Packs rows by first fit; without a seed the packed rows keep their order."""
    return grain.experimental.FirstFitPackIterDataset(
        dataset,
        length_struct={"token_ids": max_length},
        num_packing_bins=PACKING_BINS,
        seed=seed or 0,
        shuffle_bins=seed is not None,
        padding_struct={"token_ids": pad_id},
    )


def _stack(rows: Sequence[Batch]) -> Batch:
    """Makes a batch of rows that Grain packed."""
    return {
        "token_ids": np.stack([row["token_ids"] for row in rows]),
        "attention_mask": np.stack([row["token_ids_segment_ids"] for row in rows]),
        "positions": np.stack([row["token_ids_positions"] for row in rows]),
        "weight": np.ones(len(rows), np.float32),
    }


def _pad(rows: Sequence[Batch], max_length: int, pad_id: int) -> Batch:
    """Makes a batch of one document a row."""
    lengths = np.array([len(row["token_ids"]) for row in rows])
    steps = np.arange(max_length, dtype=np.int32)
    real = steps < lengths[:, None]
    token_ids = np.full((len(rows), max_length), pad_id, np.int32)
    token_ids[real] = np.concatenate([row["token_ids"] for row in rows])
    batch = {
        "token_ids": token_ids,
        "attention_mask": real.astype(np.int32),
        "positions": np.where(real, steps, 0).astype(np.int32),
        "weight": np.ones(len(rows), np.float32),
    }
    if "labels" in rows[0]:
        batch["labels"] = np.stack([row["labels"] for row in rows])
    return batch
