"""From token ids to batches of numpy arrays, with Grain: shuffled, packed, sharded and resumable.

Which rows a batch has never depends on the number of processes: each takes its part of the same global batch. That
batch comes from one or several streams. Every process runs the streams that its part touches, so with one stream all
do the same work, and with a multiple of the processes none does another's.

A batch is a dict of arrays whose leading axis is rows:

    token_ids       int32 [B, T]
    attention_mask  int32 [B, T]  0 at padding; positions with the same value see each other (documents 1, 2, 3, ...)
    positions       int32 [B, T]  within the document; 0 at padding
    documents       int32 [B, T]  of packed documents that are not isolated, whose attention_mask is 1 and whose
                    positions are within the row: 1, 2, 3, ..., 0 at padding; else absent
    token_type_ids  int32 [B, T]  1 in the second text of a pair; absent without pairs
    labels          of rows: int32 [B] (a class), float32 [B] (a number) or [B, C] (which classes); of packed documents
                    [B, S] or [B, S, C], 0 where a row has fewer; of tokens int32 [B, T], -1 where one has no label;
                    absent without labels
    weight          float32 [B]   1, or 0 for a row that only fills the last evaluation batch

T is the maximal length or, with buckets, the smallest of them that the longest row of the batch fits into.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.bucketing import Sorter, bucket_of
from lepton_jax.data.order import Order
from lepton_jax.data.packing import OPEN_ROWS, Packer
from lepton_jax.data.rows import Rows
from lepton_jax.data.streams import Batch, Streams

_PREFETCHED_BATCHES = 4
_OPEN_SHARE = 32  # of a small corpus, so many rows an open one: then no document waits for more than half an epoch


def training_batches(
    rows: Rows | Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    pack: bool,
    isolate: bool = True,
    buckets: Sequence[int] = (),
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
      rows: encoded texts, or the token ids alone, each of at most `max_length` tokens.
      batch_size: rows of a batch, over all processes.
      max_length: T, or without packing the last of the buckets.
      pack: several rows of `rows` in one row of the batch, see `packing`.
      isolate: whether these do not see each other; False is for rows without labels.
      buckets: increasing lengths, see `bucketing`.
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
    rows, lengths, buckets = _check(rows, max_length, pack, isolate, buckets)
    if len(buckets) > 1 and streams > 1:
        raise ValueError(f"streams={streams}: must be 1 with buckets={buckets}")
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
    fill = functools.partial(_fill, rows, buckets, _documents(rows, max_length) if pack else None, isolate, pad_id)
    open_rows = min(max(len(rows) // streams // _OPEN_SHARE, 1), OPEN_ROWS)

    def stream(number: int) -> grain.DatasetIterator[Batch]:
        order = Order(sizes, weights, seed, number, streams)
        grouping = Packer(max_length, open_rows) if pack else None
        if len(buckets) > 1:
            grouping = Sorter(size, len(rows), seed)
        dataset = _BatchDataset(order, grouping, lengths, size, fill)
        return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCHED_BATCHES))

    def touched(part: slice) -> set[int]:
        start, stop, _ = part.indices(batch_size)
        return set(range(start // size, -(-stop // size)))

    mine = sorted(touched(parts[process_index]))
    elsewhere = set().union(*map(touched, parts[:process_index]))
    start, stop, _ = parts[process_index].indices(batch_size)
    part = slice(start - mine[0] * size, stop - mine[0] * size)
    data = f"{rows.fingerprint} {sizes} {pack} {buckets}"
    return Streams({number: stream(number) for number in mine}, streams, part, set(mine) - elsewhere, data)


def evaluation_batches(
    rows: Rows | Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    pack: bool,
    isolate: bool = True,
    buckets: Sequence[int] = (),
    pad_id: int,
    parts: Sequence[slice] = (slice(None),),
    process_index: int = 0,
) -> Iterator[Batch]:
    """Yields this process's part of the batches of one pass; each row is in exactly one batch.

    They come in order, or with buckets in that of `evaluation_order`. The last batch is filled up with rows of weight
    0, all padding. The arguments are those of `training_batches`.
    """
    rows, lengths, buckets = _check(rows, max_length, pack, isolate, buckets)
    documents = _documents(rows, max_length) if pack else None
    groups: Iterable[list[int]] = ([row] for row in evaluation_order(rows, buckets).tolist())
    if pack:
        groups = _packed(lengths, max_length)
    first, stop, _ = parts[process_index].indices(batch_size)
    for chosen in _batched(groups, batch_size):
        length = bucket_of(buckets, max(int(lengths[group].sum()) for group in chosen))
        batch = _fill(rows, (length,), documents, isolate, pad_id, chosen[first:stop])
        filler = {
            name: np.zeros((stop - first - len(part), *part.shape[1:]), part.dtype) for name, part in batch.items()
        }
        filler["token_ids"] += np.int32(pad_id)
        if rows.labels is not None and not isinstance(rows.labels, np.ndarray):
            filler["labels"] -= 1
        yield {name: np.concatenate([part, filler[name]]) for name, part in batch.items()}


def evaluation_order(rows: Rows, buckets: Sequence[int]) -> np.ndarray:
    """Returns int [len(rows)]: the numbers of the rows in the order in which `evaluation_batches` has them unpacked."""
    return np.argsort(rows.lengths, kind="stable") if len(buckets) > 1 else np.arange(len(rows))


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


def _check(
    rows: Rows | Sequence[np.ndarray], max_length: int, pack: bool, isolate: bool, buckets: Sequence[int]
) -> tuple[Rows, np.ndarray, tuple[int, ...]]:
    """Returns the rows, their lengths and the lengths of batches, once they are known to be right."""
    rows = rows if isinstance(rows, Rows) else Rows(rows)
    longest = int(rows.lengths.max(initial=0))
    if longest > max_length:
        raise UserError(f"a row has {longest} tokens, more than max_length={max_length}; encode the texts so")
    buckets = tuple(buckets) or (max_length,)
    if buckets != tuple(sorted(set(buckets))) or buckets[-1] != max_length or (pack and len(buckets) > 1):
        raise ValueError(f"buckets={buckets}: must increase up to max_length={max_length}; none when packing")
    if not isolate and (not pack or rows.labels is not None):
        raise ValueError("isolate=False: is for packed rows without labels")
    return rows, rows.lengths, buckets


def _documents(rows: Rows, max_length: int) -> int:
    """Returns S, which no row of a packed batch can have more documents than."""
    return max_length // max(int(rows.lengths.min(initial=max_length)), 1)


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
        grouping: Packer | Sorter | None,
        lengths: np.ndarray,
        size: int,
        fill: Callable[[Sequence[Sequence[int]]], Batch],
    ):
        super().__init__()
        self._order, self._grouping, self._lengths, self._size, self._fill = order, grouping, lengths, size, fill
        self._ready: list[list[int]] = []  # rows of the next batches

    def __next__(self) -> Batch:
        while len(self._ready) < self._size:
            row = next(self._order)
            self._ready += self._grouping.add(row, int(self._lengths[row])) if self._grouping else [[row]]
        groups, self._ready = self._ready[: self._size], self._ready[self._size :]
        return self._fill(groups)

    def get_state(self) -> dict[str, Any]:
        grouping = {} if self._grouping is None else {"grouping": self._grouping.get_state()}
        return {"order": self._order.get_state(), "ready": [list(group) for group in self._ready], **grouping}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._order.set_state(state["order"])
        self._ready = [list(group) for group in state["ready"]]
        if self._grouping is not None:
            self._grouping.set_state(state["grouping"])


def _fill(
    rows: Rows,
    buckets: Sequence[int],
    documents: int | None,
    isolate: bool,
    pad_id: int,
    groups: Sequence[Sequence[int]],
) -> Batch:
    """Makes a batch whose row b holds the rows `groups[b]` one after the other.

    Args:
      rows: encoded texts.
      buckets: lengths that the batch may have.
      documents: S of packed rows, see the top of this module; None: a row holds one document.
      isolate: whether documents of a row do not see each other.
      pad_id: the token id at padding.
      groups: numbers of rows.
    """
    chosen = [row for group in groups for row in group]
    ids = rows.read(chosen)
    counts = np.fromiter(map(len, groups), np.int64, len(groups))  # documents a row of the batch
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    starts = np.cumsum(lengths) - lengths  # of each document, among all tokens
    first = np.cumsum(counts) - counts  # the first document of each row of the batch
    offsets = starts - np.repeat(starts[first], counts)  # of each document, in its row
    numbers = np.arange(len(ids)) - np.repeat(first, counts) + 1
    where = np.repeat(np.arange(len(groups)), counts)  # the row of each document
    length = bucket_of(buckets, int((offsets + lengths).max(initial=0)))
    positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    places = np.repeat(where * length + offsets, lengths) + positions

    def spread(values: np.ndarray | Sequence[np.ndarray], filler: int = 0) -> np.ndarray:
        """Returns int32 [B, T]: what there is of each token at its place."""
        column = np.full(len(groups) * length, filler, np.int32)
        column[places] = values if isinstance(values, np.ndarray) else np.concatenate([np.zeros(0, np.int32), *values])
        return column.reshape(len(groups), length)

    batch: Batch = {
        "token_ids": spread(ids, pad_id),
        "attention_mask": spread(np.repeat(numbers, lengths)),
        "positions": spread(positions),
        "weight": np.ones(len(groups), np.float32),
    }
    if not isolate:
        seen = np.minimum(batch["attention_mask"], 1)
        batch |= {"documents": batch["attention_mask"], "attention_mask": seen, "positions": spread(places % length)}
    if rows.types is not None:
        batch["token_type_ids"] = spread([rows.types[row] for row in chosen])
    if isinstance(rows.labels, np.ndarray):
        batch["labels"] = rows.labels[chosen]
        if documents is not None:
            labels = np.zeros((len(groups), documents, *rows.labels.shape[1:]), rows.labels.dtype)
            labels[where, numbers - 1] = batch["labels"]
            batch["labels"] = labels
    elif rows.labels is not None:
        batch["labels"] = spread([rows.labels[row] for row in chosen], -1)
    return batch
