"""What the libraries that save checkpoints print, and nobody needs to read. Imported for its effect.

Orbax tells its progress, dozens of lines a save. When a save fails, it and what it runs on (TensorStore, asyncio) also
print the error, once for every array. The error is raised as well, with its cause, and that is enough.
`--verbosity=1` shows all of it.
"""

from __future__ import annotations

import logging
import sys

import absl.logging


def _worth_reading(record: logging.LogRecord) -> bool:
    """Leaves out Orbax's progress, and its errors, which are raised as well; keeps its warnings."""
    if "orbax" not in record.pathname or absl.logging.level_debug():
        return True
    return record.levelno >= logging.WARNING and not record.exc_info


def _not_of_a_save(record: logging.LogRecord) -> bool:
    """Leaves out that nobody asked for the error of an array's write, after that of another had ended the save."""
    message = record.getMessage()
    return not ("never retrieved" in message and "orbax" in message) or absl.logging.level_debug()


absl.logging.get_absl_logger().addFilter(_worth_reading)
logging.getLogger("asyncio").addFilter(_not_of_a_save)

_shown = sys.unraisablehook


def _show(unraisable: sys.UnraisableHookArgs) -> None:
    """Leaves out that TensorStore's threads found no event loop to report to: the save had failed and was over."""
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not late or absl.logging.level_debug():
        _shown(unraisable)


sys.unraisablehook = _show
