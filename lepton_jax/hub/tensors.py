"""The tensors of a checkpoint folder of other libraries, by name, read and written a piece at a time.

Read are `model.safetensors`, sharded safetensors with `model.safetensors.index.json`, and `pytorch_model.bin` in
PyTorch's zip format, whole or sharded. The latter is a pickle, which could run code: `_Unpickler` knows the few names
that tensors need and refuses every other one. Written is safetensors alone.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from lepton_jax.core.errors import UserError
from lepton_jax.workdir import read_json, write_json

Index = tuple[slice, ...]

DTYPES: dict[str, Any] = {  # the names that safetensors gives them
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


# A tensor to be written: its dtype as in DTYPES, its shape, and what gives the array.
Planned = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a folder; `read(index)` reads that part of it from disk."""

    file: Path
    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]


def open_folder(folder: Path) -> dict[str, Stored]:
    """Returns name -> tensor of all files of a folder; nothing but headers is read.

    Raises:
      UserError: there is no checkpoint here, a shard is missing, or a file is damaged or would run code.
    """
    for whole, opened in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_bin)):
        index = folder / f"{whole}.index.json"
        if (folder / whole).exists():
            return opened(folder / whole)
        if index.exists():
            return _open_shards(index, opened)
    raise UserError(f"{folder}: holds no weights; it must have model.safetensors, its index, or pytorch_model.bin")


def write(folder: Path, tensors: Mapping[str, Planned], shard: int) -> None:
    """Writes tensors as safetensors, in shards of at most `shard` bytes (one of a larger tensor holds it alone).

    Args:
      folder: gets `model.safetensors`, or shards and their index.
      tensors: by name; each array is made when it is written and not kept.
      shard: bytes.
    """
    sizes = {name: math.prod(shape) * np.dtype(DTYPES[kind]).itemsize for name, (kind, shape, _) in tensors.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(map(sizes.__getitem__, shards[-1])) + size > shard:
            shards.append([])
        shards[-1].append(name)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in names}, sizes)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def _write_file(path: Path, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Writes one file: the header's length, the header, and the arrays one after another.

    The library's own writer wants all arrays at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what `transformers` asks for
    end = 0
    for name, (kind, shape, _) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays start aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, (kind, shape, make) in tensors.items():
            array = np.asarray(make(), DTYPES[kind], order="C")
            if array.shape != tuple(shape):
                raise ValueError(f"{name}: {array.shape}, not {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


def _open_shards(index: Path, opened: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    places = read_json(index)
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index}: not an index of shards, it has no weight_map from tensors to files")
    files: dict[str, dict[str, Stored]] = {}
    for file in sorted(set(places.values())):
        path = index.parent / file
        if path.resolve().parent != index.parent.resolve():
            raise UserError(f"{index}: names {file!r}, which is not a file beside it")
        if not path.exists():
            raise UserError(f"{path}: missing, but {index.name} names it; fetch the checkpoint again")
        files[file] = opened(path)
    for name, file in places.items():
        if name not in files[file]:
            raise UserError(f"{index.parent / file}: {name} is missing, but {index.name} says it is here")
    return {name: files[file][name] for name, file in places.items()}


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file: Any = safetensors.safe_open(str(path), framework="np")  # maps the file; slices read what they need
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    tensors = {}
    for name, view in slices.items():
        kind, shape = view.get_dtype(), tuple(view.get_shape())
        if kind not in DTYPES:
            raise UserError(f"{path}: {name} is of type {kind}; known: {', '.join(DTYPES)}")

        def read(index: Index, name: str = name, view: Any = view) -> np.ndarray:
            return view[index] if index else file.get_tensor(name)

        tensors[name] = Stored(path, kind, shape, read)
    return tensors


# PyTorch's own format: a zip with the pickle `data.pkl` and one member of raw bytes for each storage.

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    kind: str
    key: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    del rest  # whether it needs a gradient, and hooks
    return _Tensor(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    del rest
    return data


class _Unpickler(pickle.Unpickler):
    """Builds descriptions of tensors. No name outside this list is ever looked up, so nothing else can run."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", storage): kind for storage, kind in _STORAGES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or storage not in DTYPES:
            raise pickle.UnpicklingError(f"it refers to {kind!r}, not to a storage")
        return _Storage(storage, str(key))


def _open_bin(path: Path) -> dict[str, Stored]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: entry for entry in archive.infolist()}
            pickled = [name for name in members if name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise UserError(f"{path}: not a PyTorch checkpoint, it has {len(pickled)} files named data.pkl")
            with archive.open(pickled[0]) as file:
                tree = _Unpickler(file).load()
    except zipfile.BadZipFile:
        raise UserError(f"{path}: truncated, or older than PyTorch 1.6; save it again as safetensors") from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle makes of the unpickler
        raise UserError(f"{path}: refused ({type(error).__name__}: {error})") from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds {type(tree).__name__}, not a dict of tensors")
    root = pickled[0].removesuffix("data.pkl")
    tensors = {}
    for name, value in tree.items():
        if isinstance(value, _Tensor):
            tensors[str(name)] = _stored(path, members, root, str(name), value)
    return tensors


def _stored(path: Path, members: Mapping[str, zipfile.ZipInfo], root: str, name: str, value: _Tensor) -> Stored:
    kind = np.dtype(DTYPES[value.storage.kind])
    member = members.get(f"{root}data/{value.storage.key}")
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path}: the storage of {name} is missing or compressed; the file is damaged")
    last = value.offset + sum((size - 1) * stride for size, stride in zip(value.shape, value.strides, strict=True))
    beyond = math.prod(value.shape) > 0 and (last + 1) * kind.itemsize > member.file_size
    if beyond or min(value.offset, *value.strides, *value.shape, 0) < 0:
        raise UserError(f"{path}: {name} reaches beyond its storage; the file is damaged")

    def read(index: Index) -> np.ndarray:
        with open(path, "rb") as file:  # a member's data come after its own header, whose length only it knows
            file.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
        start = member.header_offset + 30 + name_length + extra_length
        storage = np.memmap(path, kind, "r", start, (member.file_size // kind.itemsize,))
        strides = tuple(stride * kind.itemsize for stride in value.strides)
        view = np.lib.stride_tricks.as_strided(storage[value.offset :], value.shape, strides, writeable=False)
        return np.array(view[index])

    return Stored(path, value.storage.kind, value.shape, read)
