"""Where derived files are kept, and how one is written so that a reader never sees half of it.

Everything under the cache can be deleted and comes back: fetched packages, prepared datasets, trained
tokenizers, encoded corpora. Entries are named by a hash of all that they depend on, so none goes stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from lepton_jax.core.errors import UserError


def cache_folder(cache: str) -> Path:
    """Returns the cache folder: `cache`, else `$LEPTON_JAX_CACHE`, else `~/.cache/lepton_jax`; it exists.

    Raises:
      UserError: the folder cannot be made or written to.
    """
    folder = Path(cache or os.environ.get("LEPTON_JAX_CACHE") or "~/.cache/lepton_jax").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache={str(folder)!r}: cannot be made ({error.strerror}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"data.cache={str(folder)!r}: cannot be written to; choose another")
    return folder.resolve()


def keep_compiled(cache: str = "") -> None:
    """Turns JAX's persistent compilation cache on, unless the environment or the caller has chosen one."""
    import jax  # here, for processes that tokenise do without it

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(cache) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes the place of `path` at once when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on a folder, so that processes of one machine do not prepare the same thing twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a killed process
        yield


def content_hash(settings: object, texts: Iterable[str] = ()) -> str:
    """Returns a hexadecimal hash of `repr(settings)` and of texts in their order."""
    digest = hashlib.sha256(repr(settings).encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]
