"""From token ids to batches of numpy arrays, with Grain: shuffled, packed, sharded and resumable.

A batch is a dict of arrays whose leading axis is rows:

    token_ids       int32 [B, T]
    attention_mask  int32 [B, T]  0 at padding; positions with the same value see each other (documents 1, 2, 3, ...)
    positions       int32 [B, T]  within the document; 0 at padding
    labels          int32 [B] (classes) or float32 [B] (numbers); absent without labels
    weight          float32 [B]   1, or 0 for a row that only fills the last evaluation batch
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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


def training_batches(
    rows: Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    labels: np.ndarray | None = None,
    pack: bool,
    seed: int,
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Returns an endless iterator over this process's batches.

    Every epoch has another order, which the seed decides. All processes together see each row once an epoch:
    process p takes every `process_count`-th row of the common order. The iterator's `get_state`/`set_state`, also
    through `grain.checkpoint`, resume it exactly; `close()` ends the thread that works ahead.

    Args:
      rows: int32 [n] each, n <= max_length.
      batch_size: rows of a batch, of this process.
      max_length: T.
      labels: [len(rows)], int32 or float32.
      pack: several rows of `rows`, isolated from each other, in one row of the batch (first fit).
      seed: of the order.
      pad_id: the token id at padding.
      process_index: which process this is.
      process_count: how many there are.

    Raises:
      UserError: there are fewer rows than one batch of all processes takes.
    """
    _check(rows, max_length, labels, pack)
    needed = batch_size * process_count
    available = -(-sum(map(len, rows)) // max_length) if pack else len(rows)
    if available < needed:
        kind = f"rows of {max_length} tokens when packed" if pack else "rows"
        raise UserError(f"the training data fill {available} {kind}, fewer than one batch of {needed}; "
                        f"use more data or train.batch_size of at most {available}")  # fmt: skip
    order = grain.MapDataset.source(_Rows(rows, labels)).seed(seed).shuffle().repeat()
    dataset: Any = order[process_index::process_count].to_iter_dataset(_IN_THREAD)
    if pack:
        dataset = _packed(dataset, max_length, pad_id, seed).batch(batch_size, batch_fn=_stack)
    else:
        dataset = dataset.batch(batch_size, batch_fn=functools.partial(_pad, max_length=max_length, pad_id=pad_id))
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCHED_BATCHES))


def evaluation_batches(
    rows: Sequence[np.ndarray],
    batch_size: int,
    max_length: int,
    *,
    labels: np.ndarray | None = None,
    pack: bool,
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this process's batches of one pass, in order; each row is in exactly one batch of one process.

    Batch k of process 0, then of process 1, ... hold consecutive rows. The last batches are filled up with rows
    of weight 0, all padding, so that every process yields the same number of batches of the same shape.
    The arguments are those of `training_batches`.
    """
    _check(rows, max_length, labels, pack)
    if not len(rows):
        return
    if pack:
        source = grain.MapDataset.source(_Rows(rows, None)).to_iter_dataset(_IN_THREAD)
        table = _stack(list(_packed(source, max_length, pad_id, None)))
    else:
        table = _pad(list(_Rows(rows, labels)), max_length, pad_id)
    first, stride, total = process_index * batch_size, process_count * batch_size, len(table["weight"])
    for start in range(first, total + first, stride):
        batch = {name: column[start : start + batch_size] for name, column in table.items()}
        filler = {name: np.zeros((batch_size - len(part), *part.shape[1:]), part.dtype) for name, part in batch.items()}
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
