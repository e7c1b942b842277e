"""The tensors of a checkpoint folder: formats, shards, slices, and files that are not what they say."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lepton_jax.core.errors import UserError
from lepton_jax.hub import tensors

WHOLE = (slice(None), slice(None))


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(6, 4)).astype(np.float32)
    return {
        "single": matrix,
        "half": matrix.astype(np.float16),
        "brain": matrix.astype(ml_dtypes.bfloat16),
        "ids": np.arange(5, dtype=np.int64)[None, :],
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def write(folder: Path, shard: int = 10**9) -> dict[str, np.ndarray]:
    made = arrays()
    names = {np.dtype(kind): name for name, kind in tensors.DTYPES.items()}
    folder.mkdir(exist_ok=True)
    planned = {name: (names[value.dtype], value.shape, lambda value=value: value) for name, value in made.items()}
    tensors.write(folder, planned, shard)
    return made


def write_bin(path: Path, pickle_bytes: bytes, storages: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    return {name: one.read(()) for name, one in tensors.open_folder(folder).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def test_what_is_written_is_what_the_library_and_the_reader_read(tmp_path):
    made = write(tmp_path)
    assert same(load_file(tmp_path / "model.safetensors"), made) and same(read_all(tmp_path), made)


@pytest.mark.parametrize(("shard", "files"), [(10**9, 1), (150, 2), (100, 3), (1, 6)])
def test_shards_hold_what_one_file_holds(tmp_path, shard, files):
    made = write(tmp_path, shard)
    found = sorted(tmp_path.glob("*.safetensors"))
    assert len(found) == files and (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    assert same(read_all(tmp_path), made)
    assert all(sum(value.nbytes for value in load_file(path).values()) <= shard or len(load_file(path)) == 1
               for path in found)  # fmt: skip


@pytest.mark.parametrize("index", [WHOLE, (slice(1, 4), slice(2, 4)), (slice(5, 6), slice(None))])
@pytest.mark.parametrize("name", ["single", "half", "brain"])
def test_a_slice_is_that_part(tmp_path, name, index):
    made = write(tmp_path)
    part = tensors.open_folder(tmp_path)[name].read(index)
    assert part.dtype == made[name].dtype and np.array_equal(part, made[name][index])


def test_a_pickle_of_tensors_is_read_as_pytorch_wrote_it(tmp_path):
    torch = pytest.importorskip("torch")
    made = arrays()
    theirs = {name: torch.from_numpy(made[name]) for name in ("single", "half", "ids", "scalar", "empty")}
    theirs["brain"] = torch.from_numpy(made["single"]).to(torch.bfloat16)
    theirs["turned"] = theirs["single"].T  # a view: other strides over the same storage
    theirs["part"] = theirs["single"][2:4, 1:]
    theirs["parameter"] = torch.nn.Parameter(theirs["half"])
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    found = tensors.open_folder(tmp_path)
    expected = made | {"turned": made["single"].T, "part": made["single"][2:4, 1:], "parameter": made["half"]}
    assert same({name: one.read(()) for name, one in found.items()}, expected)
    assert np.array_equal(found["turned"].read((slice(1, 3), slice(0, 2))), made["single"].T[1:3, 0:2])


def test_sharded_pickles_are_read_too(tmp_path):
    torch = pytest.importorskip("torch")
    for number in (1, 2):
        torch.save({f"t{number}": torch.full((2,), float(number))}, tmp_path / f"part{number}.bin")
    index = {"weight_map": {"t1": "part1.bin", "t2": "part2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert {name: value.tolist() for name, value in read_all(tmp_path).items()} == {"t1": [1, 1], "t2": [2, 2]}


class Evil:
    """Runs a command where it is unpickled; torch.load(weights_only=False) would."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_never_runs_code(tmp_path):
    witness = tmp_path / "witness"
    evil = pickle.dumps({"weight": Evil(witness)})
    pickle.loads(evil)
    assert witness.exists(), "the pickle must be one that runs code where it can"
    witness.unlink()
    write_bin(tmp_path / "pytorch_model.bin", evil, {})
    with pytest.raises(UserError, match=r"pytorch_model\.bin: refused \(UnpicklingError: it asks for \w+\.system"):
        tensors.open_folder(tmp_path)
    assert not witness.exists()


def pickled(kind: str, key: str, offset: int, shape: tuple, strides: tuple) -> bytes:
    """Returns the pickle of {"w": a tensor}, put together as PyTorch would write it."""

    def plain(value) -> bytes:
        return pickle.dumps(value, 0)[:-1]  # without its end

    storage = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cpu") + plain(8) + b"tQ"
    arguments = b"(" + storage + plain(offset) + plain(shape) + plain(strides) + b"I00\nNt"
    return b"(" + plain("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rd."


def test_a_pickle_is_read_without_pytorch(tmp_path):
    data = np.arange(8, dtype=np.float32)
    written = pickled("FloatStorage", "0", 1, (2, 3), (3, 1))
    write_bin(tmp_path / "pytorch_model.bin", written, {"0": data.tobytes()})
    np.testing.assert_array_equal(read_all(tmp_path)["w"], data[1:7].reshape(2, 3))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("FloatStorage", "0", 3, (2, 3), (3, 1)), "w reaches beyond its storage"),
        (("FloatStorage", "0", -1, (2,), (1,)), "w reaches beyond its storage"),
        (("FloatStorage", "0", 4, (2,), (-1,)), "w reaches beyond its storage"),
        (("FloatStorage", "1", 0, (2,), (1,)), "the storage of w is missing"),
        (("StringStorage", "0", 0, (2,), (1,)), r"it asks for torch\.StringStorage"),
    ],
)
def test_a_pickle_that_lies_about_its_storage_is_refused(tmp_path, tensor, message):
    write_bin(tmp_path / "pytorch_model.bin", pickled(*tensor), {"0": np.arange(8, dtype=np.float32).tobytes()})
    with pytest.raises(UserError, match=message):
        tensors.open_folder(tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: _truncate(folder / "model.safetensors"), r"model\.safetensors: damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model\.safetensors: damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights; it must have model\.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"pytorch_model\.bin: truncated, or older than PyTorch 1\.6",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, harm, message):
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        tensors.open_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_type_that_no_parameter_has_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(UserError, match=r"w is of type F8_E5M2; known: F64, F32"):
        tensors.open_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update(single="gone.safetensors"), r"gone\.safetensors: missing"),
        (lambda index: index["weight_map"].update(other=index["weight_map"]["single"]), "other is missing, but"),
        (lambda index: index["weight_map"].update(single="../x.safetensors"), "is not a file beside it"),
        (lambda index: index.pop("weight_map"), "not an index of shards"),
        (lambda index: index.update(weight_map={"single": 3}), "not an index of shards"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, change, message):
    write(tmp_path / "a", 150)
    save_file({"single": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    path = tmp_path / "a" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        tensors.open_folder(tmp_path / "a")
