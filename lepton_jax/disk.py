"""What a person is told when the disk is full or read-only, and which errors say so."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lepton_jax.core.errors import UserError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what only a write can meet
_REMEDIES = {
    "make space": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "make it writable": (errno.EROFS, errno.EACCES, errno.EPERM),
}


def failed_write(what: object, error: Exception, consequence: str = "") -> UserError:
    """Returns what a person is told about a write that failed: what, why, and what to do.

    Args:
      what: the file or folder.
      error: an OSError, or what a library made of one; the system's words for its cause are then in its text.
      consequence: what that means for the rest, such as "earlier steps are untouched".
    """
    text = str(error)
    causes = {os.strerror(number): remedy for remedy, numbers in _REMEDIES.items() for number in numbers}
    cause = next((cause for cause in causes if cause in text), None)
    if cause is None:
        cause = getattr(error, "strerror", None) or text.partition("\n")[0] or type(error).__name__
    remedy = f"{causes.get(cause, 'mend that')}, then give the same command again"
    return UserError("; ".join(part for part in (f"{what}: cannot be written ({cause})", consequence, remedy) if part))


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns an OSError inside into the `UserError` that `failed_write` makes of it."""
    try:
        yield
    except OSError as error:
        raise failed_write(what, error) from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `folder` when the block ends well: that appears complete or not at all.

    Raises:
      UserError: there is something at `folder`, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; choose another folder")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(folder):
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
