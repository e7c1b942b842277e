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
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.order import Order
from lepton_jax.data.packing import OPEN_ROWS, Packer
from lepton_jax.data.rows import TokenRows, lengths_of, read
from lepton_jax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 4
_OPEN_SHARE = 32  # of a small corpus, so many rows an open one: then no document waits for more than half an epoch


def encode_examples(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Returns int32 [n] of each text with the tokenizer's special tokens, cut at its end so that n <= max_length."""
    room = max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))
    # Not `tokenizer.rows`: that also finds where each token lies in its text, in several times the time.
    return [tokenizer.with_specials(ids[:room]) for ids in tokenizer.encode(texts)]


def fingerprint(arrays: Sequence[np.ndarray]) -> str:
    """Returns a hexadecimal hash of arrays in their order: of rows or labels. Rows on disk know theirs."""
    if isinstance(arrays, TokenRows):
        return arrays.fingerprint
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
    sizes: Sequence[int] = (),
    weights: Sequence[float] = (1.0,),
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
      pack: several rows of `rows`, isolated from each other, in one row of the batch, see `packing`.
      seed: of the order.
      pad_id: the token id at padding.
      sizes: how many of the rows each source of a mixture has, in their order; empty: they are one source.
      weights: how often rows of each source come, see `order.Order`; each source has epochs of its own.
      streams: into how many parts the order is split; divides `batch_size`.
      parts: which rows of a batch each process takes, see `core.sharding.process_rows`.
      process_index: which process this is.

    Raises:
      UserError: there are fewer rows than one batch takes, or a source has fewer rows than there are streams.
    """
    lengths = _check(rows, max_length, labels, pack)
    if batch_size % streams:
        raise ValueError(f"streams={streams} must divide batch_size={batch_size}")
    available = -(-int(lengths.sum(dtype=np.int64)) // max_length) if pack else len(rows)
    if available < batch_size:
        kind = f"rows of {max_length} tokens when packed" if pack else "rows"
        raise UserError(f"the training data fill {available} {kind}, fewer than one batch of {batch_size}; "
                        f"use more data or train.batch_size of at most {available}")  # fmt: skip
    sizes = tuple(sizes) or (len(rows),)
    if min(sizes) < streams:
        raise UserError(
            f"data.streams={streams}: a source of data.train has {min(sizes)} rows; at most as many streams"
        )
    size = batch_size // streams
    fill = functools.partial(_fill, rows, labels, max_length, pad_id)
    open_rows = min(max(len(rows) // streams // _OPEN_SHARE, 1), OPEN_ROWS)

    def stream(number: int) -> grain.DatasetIterator[Batch]:
        order = Order(sizes, weights, seed, number, streams)
        dataset = _BatchDataset(order, Packer(max_length, open_rows) if pack else None, lengths, size, fill)
        return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCHED_BATCHES))

    def touched(part: slice) -> set[int]:
        start, stop, _ = part.indices(batch_size)
        return set(range(start // size, -(-stop // size)))

    mine = sorted(touched(parts[process_index]))
    elsewhere = set().union(*map(touched, parts[:process_index]))
    start, stop, _ = parts[process_index].indices(batch_size)
    part = slice(start - mine[0] * size, stop - mine[0] * size)
    data = f"{fingerprint(rows)} {fingerprint([] if labels is None else [labels])} {sizes} {pack}"
    return Streams({number: stream(number) for number in mine}, streams, part, set(mine) - elsewhere, data)


class Streams(Iterator[Batch]):
    """The streams that a process runs, as one iterator over its part of the batches.

    `get_state` and `set_state` resume it exactly, in any process of any run with as many streams.
    """

    def __init__(
        self,
        running: Mapping[int, grain.DatasetIterator[Batch]],
        count: int,
        part: slice,
        kept: Iterable[int],
        data: str,
    ):
        """Joins the batches of consecutive streams.

        Args:
          running: number -> the iterator of a stream.
          count: how many streams there are in all processes.
          part: the rows that the process takes of all those that the running streams give.
          kept: the streams whose position this process writes into a checkpoint; of several that run the same
            stream, it is one's.
          data: says what the batches are made of; a position in other data means nothing.
        """
        self._running, self._count, self._part = dict(running), count, part
        self._data = hashlib.sha256(data.encode()).hexdigest()
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
            _state_name(number): {"streams": self._count, "data": self._data, "position": stream.get_state()}
            for number, stream in self._running.items()
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the positions that `get_state` gave; names of streams that do not run here are ignored.

        Raises:
          UserError: they are of another number of streams, or of other data.
        """
        for name in map(_state_name, self._running):
            if state.get(name, {}).get("streams") != self._count:
                raise UserError(f"data.streams={self._count}: the saved position of the data is another iterator's, "
                                f"with {', '.join(sorted(state)) or 'nothing'}")  # fmt: skip
            if state[name].get("data") != self._data:
                raise UserError("data.train: the training data are not those that this run has trained on so far; give "
                                "it the same files and tokenizer again, or start a run in another workdir")  # fmt: skip
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
    lengths = _check(rows, max_length, labels, pack)
    groups: Iterable[list[int]] = _packed(lengths, max_length) if pack else ([row] for row in range(len(rows)))
    first, stop, _ = parts[process_index].indices(batch_size)
    for chosen in _batched(groups, batch_size):
        batch = _fill(rows, labels, max_length, pad_id, chosen[first:stop])
        filler = {
            name: np.zeros((stop - first - len(part), *part.shape[1:]), part.dtype) for name, part in batch.items()
        }
        filler["token_ids"] += np.int32(pad_id)
        yield {name: np.concatenate([part, filler[name]]) for name, part in batch.items()}


def packed_share(lengths: np.ndarray, max_length: int) -> float:
    """Returns the share of positions that hold a token while rows of these lengths are packed in this order.

    What is left open at the end does not count, for training has none; if that is all, it does.
    """
    packer = Packer(max_length)
    groups = [group for row, length in enumerate(lengths.tolist()) for group in packer.add(row, length)]
    groups = groups or packer.flush()
    used = [row for group in groups for row in group]
    return float(lengths[used].sum(dtype=np.int64) / max(len(groups) * max_length, 1))


def _packed(lengths: np.ndarray, max_length: int) -> Iterator[list[int]]:
    """Yields the packed rows of one pass in order, each as numbers of rows."""
    packer = Packer(max_length)
    for row, length in enumerate(lengths.tolist()):
        yield from packer.add(row, length)
    yield from packer.flush()


def _batched(groups: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    groups = iter(groups)
    while batch := list(itertools.islice(groups, size)):
        yield batch


def _check(rows: Sequence[np.ndarray], max_length: int, labels: np.ndarray | None, pack: bool) -> np.ndarray:
    """Returns the lengths of the rows, once they are known to be right."""
    lengths = lengths_of(rows)
    longest = int(lengths.max(initial=0))
    if longest > max_length:
        raise UserError(f"a row has {longest} tokens, more than max_length={max_length}; encode the texts so")
    if labels is not None and (pack or len(labels) != len(rows)):
        raise ValueError(f"{len(labels)} labels, {len(rows)} rows, pack={pack}: one label a row, none when packing")
    return lengths


class _BatchDataset(grain.IterDataset[Batch]):
    """The batches of one stream; its iterator's state is the position of the order and the rows that are open."""

    def __init__(self, *settings: Any):
        super().__init__()
        self._settings = settings

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return _BatchIterator(*self._settings)


class _BatchIterator(grain.DatasetIterator[Batch]):
    def __init__(
        self,
        order: Order,
        packer: Packer | None,
        lengths: np.ndarray,
        size: int,
        fill: Callable[[Sequence[Sequence[int]]], Batch],
    ):
        super().__init__()
        self._order, self._packer, self._lengths, self._size, self._fill = order, packer, lengths, size, fill
        self._ready: list[list[int]] = []  # packed rows of the next batch

    def __next__(self) -> Batch:
        while len(self._ready) < self._size:
            row = next(self._order)
            self._ready += self._packer.add(row, int(self._lengths[row])) if self._packer else [[row]]
        groups, self._ready = self._ready[: self._size], self._ready[self._size :]
        return self._fill(groups)

    def get_state(self) -> dict[str, Any]:
        packing = {} if self._packer is None else {"packer": self._packer.get_state()}
        return {"order": self._order.get_state(), "ready": [list(group) for group in self._ready], **packing}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._order.set_state(state["order"])
        self._ready = [list(group) for group in state["ready"]]
        if self._packer is not None:
            self._packer.set_state(state["packer"])


def _fill(
    rows: Sequence[np.ndarray],
    labels: np.ndarray | None,
    max_length: int,
    pad_id: int,
    groups: Sequence[Sequence[int]],
) -> Batch:
    """Makes a batch whose row b holds the rows `groups[b]` one after the other."""
    chosen = [row for group in groups for row in group]
    documents = read(rows, chosen)
    counts = np.fromiter(map(len, groups), np.int64, len(groups))  # documents a row of the batch
    lengths = np.fromiter(map(len, documents), np.int64, len(documents))
    starts = np.cumsum(lengths) - lengths  # of each document, among all tokens
    first = np.cumsum(counts) - counts  # the first document of each row of the batch
    offsets = starts - np.repeat(starts[first], counts)  # of each document, in its row
    numbers = np.arange(len(documents)) - np.repeat(first, counts) + 1
    where = np.repeat(np.arange(len(groups)), counts)  # the row of each document
    positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    places = np.repeat(where * max_length + offsets, lengths) + positions
    table = {name: np.zeros(len(groups) * max_length, np.int32) for name in ("attention_mask", "positions")}
    table["token_ids"] = np.full(len(groups) * max_length, pad_id, np.int32)
    table["token_ids"][places] = np.concatenate([np.zeros(0, np.int32), *documents])
    table["attention_mask"][places] = np.repeat(numbers, lengths)
    table["positions"][places] = positions
    batch: Batch = {name: column.reshape(len(groups), max_length) for name, column in table.items()}
    batch["weight"] = np.ones(len(groups), np.float32)
    if labels is not None:
        batch["labels"] = labels[chosen]
    return batch
