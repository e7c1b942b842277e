"""Metrics for TensorBoard, written in the caller's own thread.

The writer of tensorboardX has a thread and a queue: on a full disk the thread dies, the queue fills, and the run waits
for ever. Here the same error is raised where the metric is added.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class Board:
    """One file of events. Every method raises OSError where the disk does not take them."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Begins a new file in `folder`, which is created; TensorBoard forgets what others say of `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # two of one second do not collide
        if purge_step is not None:
            self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        """Adds a metric of a step."""
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Returns when all that was added is on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes, and closes the file."""
        self._writer.close()
