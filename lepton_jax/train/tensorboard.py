"""Metrics for TensorBoard, written in the caller's own thread.

The writer of tensorboardX has a thread and a queue: on a full disk the thread dies, the queue fills, and the run waits
for ever. Here the same error is raised where the metric is added.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class TensorBoard:
    """A `Board`: one file of events."""

    def __init__(self, folder: Path) -> None:
        """Begins a new file in `folder`, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # two of one second do not collide

    def add(self, values: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        for name, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def forget(self, step: int) -> None:
        """See `Board`; TensorBoard then leaves out what it has read so far, of this file and of earlier ones."""
        self._writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def flush(self) -> None:
        """See `Board`."""
        self._writer.flush()

    def close(self, failed: bool = False) -> None:
        """See `Board`."""
        del failed
        self._writer.close()
