"""Several streams of batches as one iterator, whose position is in the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from lepton_jax.core.errors import UserError

Batch = dict[str, np.ndarray]


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
