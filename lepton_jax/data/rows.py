"""Rows of token ids: of encoded examples in memory, and on disk as a sequence of which any row can be read.

The lengths of rows on disk are known without reading them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from lepton_jax.data.cache import content_hash
from lepton_jax.data.tokenizers import Tokenizer

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_IN_MEMORY = 512 << 20  # bytes of tokens that are kept in memory, for ten times the speed; more are read as needed


class TokenRows(Sequence[np.ndarray]):
    """int32 [n] rows of ArrayRecord shards, in order; `shards.encode_documents` makes them.

    Attributes:
      lengths: int32 [len(self)].
      fingerprint: a hash of what they hold.
    """

    def __init__(self, paths: Sequence[Path], lengths: Sequence[np.ndarray], dtype: str, fingerprint: str):
        """Describes the rows; a shard is opened when a row of it is first read.

        Args:
          paths: the shards; a record is the bytes of one row.
          lengths: int32 [rows of the shard], one array a shard.
          dtype: of the numbers in the shards.
          fingerprint: see above.
        """
        self.lengths = np.concatenate([np.zeros(0, np.int32), *lengths])
        self.fingerprint = fingerprint
        self._paths, self._dtype = tuple(paths), np.dtype(dtype)
        self._shards = tuple(lengths)
        self._ends = np.cumsum([len(each) for each in lengths], dtype=np.int64)
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.read(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.read([index % len(self)])[0]

    def __repr__(self) -> str:
        return f"TokenRows({len(self)} rows, {self.lengths.sum(dtype=np.int64)} tokens)"

    def read(self, numbers: Iterable[int]) -> list[np.ndarray]:
        """Returns int32 [n] of each row, by its number 0 <= number < len(self); those of one shard in one go."""
        numbers = np.fromiter(numbers, np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right")
        rows: list[np.ndarray] = [np.zeros(0, np.int32)] * len(numbers)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            start = self._ends[shard - 1] if shard else 0
            within, held = (numbers[places] - start).tolist(), self._shard(shard)
            records = [held[number] for number in within] if isinstance(held, list) else held.read(within)
            for place, record in zip(places.tolist(), records, strict=True):
                rows[place] = np.frombuffer(record, self._dtype).astype(np.int32)
        return rows

    @classmethod
    def join(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Returns the rows of one or several parts of one tokenizer, one after the other."""
        if len(parts) == 1:
            return parts[0]
        paths = [path for part in parts for path in part._paths]
        lengths = [each for part in parts for each in part._shards]
        fingerprint = content_hash("joined", [part.fingerprint for part in parts])
        return cls(paths, lengths, parts[0]._dtype.name, fingerprint)

    def _shard(self, shard: int) -> Any:
        """Returns the reader of a shard, or all its records where they are kept in memory."""
        if shard not in self._opened:
            small = self.lengths.sum(dtype=np.int64) * self._dtype.itemsize <= _IN_MEMORY
            reader = ArrayRecordReader(str(self._paths[shard]), "" if small else _RANDOM_ACCESS)
            self._opened[shard] = reader.read_all() if small else reader
        return self._opened[shard]


# The labels of rows: an array with one entry a row, or for labels of tokens an int32 [n] for each row of n tokens.
Labels = np.ndarray | Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Encoded texts: what batches are made of.

    Attributes:
      ids: int32 [n] each.
      labels: see `Labels`; None: there are none.
      types: int32 [n] each, the token types of pairs; None: there are none.
    """

    ids: Sequence[np.ndarray]
    labels: Labels | None = None
    types: Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        for name, part in (("labels", self.labels), ("types", self.types)):
            if part is not None and len(part) != len(self.ids):
                raise ValueError(f"{len(part)} {name}, {len(self.ids)} rows: one each")

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Int [len(self)]: how many tokens each row has."""
        return self.ids.lengths if isinstance(self.ids, TokenRows) else np.fromiter(map(len, self.ids), np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of all that they hold."""
        if isinstance(self.ids, TokenRows) and self.labels is None and self.types is None:
            return self.ids.fingerprint
        digest = hashlib.sha256()
        for part in (self.ids, self.labels, self.types):
            digest.update(b"|")
            for array in () if part is None else [part] if isinstance(part, np.ndarray) else part:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Returns the ids of the rows of the given numbers."""
        return self.ids.read(numbers) if isinstance(self.ids, TokenRows) else [self.ids[number] for number in numbers]


def encode_examples(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Returns int32 [n] of each text with the tokenizer's special tokens, cut at its end so that n <= max_length."""
    room = max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))
    # Not `tokenizer.rows`: that also finds where each token lies in its text, in several times the time.
    return [tokenizer.with_specials(ids[:room]) for ids in tokenizer.encode(texts)]
