from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import absl.logging
import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lepton_jax.checkpoint import Checkpoints, load_params, save_params
from lepton_jax.config import CheckpointConfig
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once

KEEP_ALL = CheckpointConfig(keep=100)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    rng: Any


def make_state(scale: float = 1.0) -> State:
    params = {
        "layer": {"kernel": scale * jnp.arange(32.0).reshape(8, 4), "bias": jnp.zeros(4)},
        "half": jnp.full((8,), 1.5, jnp.bfloat16),
    }
    return State(jnp.int32(0), params, OPTIMIZER.init(params), jax.random.key(3))


class Data:
    """A Grain iterator with its position under two names, of which a process may write one or both."""

    def __init__(self, kept: tuple[str, ...] = ("a", "b")):
        dataset = grain.MapDataset.range(40).shuffle(seed=1).repeat().map(np.float32).batch(4)
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
        self.kept = kept

    def __next__(self) -> Any:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        return {"a": self._iterator.get_state(), "b": {"number": 7}}

    def set_state(self, state: Any) -> None:
        if state.get("b") != {"number": 7}:
            raise UserError(f"another iterator's: {sorted(state)}")
        self._iterator.set_state(state["a"])


def make_data() -> Data:
    return Data()


@jax.jit
def train_step(state: State, batch: jax.Array) -> State:
    """Depends on the parameters, the optimizer's state, the random key, the step and the batch."""

    def loss(params: Any) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(state.rng, state.step), (4,))
        hidden = jnp.tile(batch / 40, 2) @ params["layer"]["kernel"] + params["layer"]["bias"] + noise
        return jnp.sum(hidden**2) * 0.01 + jnp.sum(params["half"].astype(jnp.float32) ** 2)

    updates, opt_state = OPTIMIZER.update(jax.grad(loss)(state.params), state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)


def train(state: State, data: Data, steps: int) -> State:
    for _ in range(steps):
        state = train_step(state, next(data))
    return state


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def numbers(tree: Any) -> list[np.ndarray]:
    def number(leaf: jax.Array) -> np.ndarray:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return [number(leaf) for leaf in jax.tree.leaves(tree)]


def equal(a: Any, b: Any) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))


def saved(folder: Path, steps: tuple[int, ...] = (1,), config: CheckpointConfig = KEEP_ALL) -> State:
    """Saves the same state at some steps and returns it."""
    state, data = make_state(), make_data()
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            checkpoints.save(step, state, data)
    return state


def arrays_file(step_folder: Path, item: str = "params") -> Path:
    """Returns the largest file of an item: it holds the arrays."""
    return max((step_folder / item).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_steps_and_two_more_are_four_steps_bit_for_bit(tmp_path: Path) -> None:
    straight = train(make_state(), make_data(), 4)
    data = make_data()
    half = train(make_state(), data, 2)
    assert not equal(half, straight)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        checkpoints.save(2, half, data)
    assert not equal(train(half, make_data(), 2), straight)  # the data position matters
    data = make_data()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.latest() == 2
        resumed = checkpoints.restore(2, abstract(make_state()), data)
    assert isinstance(resumed, State) and equal(resumed, half)
    assert equal(train(resumed, data, 2), straight)


def test_the_arrays_may_be_donated_while_they_are_being_saved(tmp_path: Path) -> None:
    step = jax.jit(
        lambda state: dataclasses.replace(state, params=jax.tree.map(lambda x: x * 0 - 1, state.params)),
        donate_argnums=0,
    )
    state = make_state()
    kept = jax.tree.map(lambda leaf: leaf + 0 if leaf.dtype != state.rng.dtype else leaf, state.params)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        checkpoints.save(1, state, make_data())
        changed = step(state)
        jax.block_until_ready(changed)
        checkpoints.wait()
        restored = checkpoints.restore_params(1, abstract(kept))
    # XLA copies in place of overwriting where the save still reads the array, so that it may not be deleted here.
    assert equal(restored, kept) and not equal(changed.params, kept)
    step(another := make_state())
    assert another.params["layer"]["kernel"].is_deleted(), "the step donates"


@pytest.mark.parametrize("shape", [(1,), (4, 2), (8,)])
def test_a_state_restores_on_another_mesh(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def placement(shape: tuple[int, ...]) -> Any:
        names = ("data", "tensor")[: len(shape)]
        devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
        mesh = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))
        return lambda leaf: NamedSharding(
            mesh, PartitionSpec(*names[: leaf.ndim]) if leaf.shape[:1] == (8,) else PartitionSpec()
        )

    state = make_state()
    source, target = placement((2, 4)), placement(shape)
    state = jax.tree.map(lambda leaf: jax.device_put(leaf, source(leaf)), state)
    data = make_data()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        checkpoints.save(1, state, data)
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target(leaf)), state)
        restored = checkpoints.restore(1, wanted, make_data())
    kernel = restored.params["layer"]["kernel"]
    assert kernel.sharding == target(kernel) and kernel.sharding != state.params["layer"]["kernel"].sharding
    assert equal(restored, state)


def test_replicas_save_parts_of_large_arrays_and_no_program_cuts_small_ones(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    params = {"large": np.arange(2**21, dtype=np.float32).reshape(8, -1), "small": np.eye(8, dtype=np.float32)}
    save_params(tmp_path / "saved", jax.device_put(params, NamedSharding(mesh, PartitionSpec())))
    (file,) = (tmp_path / "saved" / "params" / "array_metadatas").iterdir()
    found = [each["array_metadata"] for each in json.loads(file.read_text())["array_metadatas"]]
    written = {each["param_name"]: each["write_shape"] for each in found}
    assert written == {"large": [1, 2**18], "small": [8, 8]}
    assert equal(load_params(tmp_path / "saved", abstract(params)), params)


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    state, data = make_state(), make_data()
    losses = {1: 0.9, 2: 0.2, 3: None, 4: 0.2, 5: float("nan"), 6: 0.7}
    with Checkpoints(tmp_path, CheckpointConfig(keep=2, best="loss")) as checkpoints:
        assert checkpoints.steps() == [] and checkpoints.latest() is None and checkpoints.best() is None
        for step, loss in losses.items():
            checkpoints.save(step, state, data, None if loss is None else {"loss": loss, "accuracy": step / 10})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6] and checkpoints.latest() == 6 and checkpoints.best() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]
    by_accuracy = CheckpointConfig(best="accuracy")
    assert Checkpoints(tmp_path, by_accuracy, read_only=True).best() == 6


@pytest.mark.parametrize(
    ("best", "wanted"), [("loss", 2), ("mean_squared_error", 2), ("perplexity", 2), ("f1", 1), ("spearman", 1)]
)
def test_the_metric_says_whether_the_lowest_or_the_highest_is_best(tmp_path: Path, best: str, wanted: int) -> None:
    state, data = make_state(), make_data()
    with Checkpoints(tmp_path, CheckpointConfig(keep=1, best=best)) as checkpoints:
        for step, value in {1: 0.9, 2: 0.2, 3: float("nan"), 4: 0.5}.items():
            checkpoints.save(step, state, data, {best: value, "other": step})
        checkpoints.wait()
        assert checkpoints.best() == wanted and checkpoints.steps() == [wanted, 4]


def test_without_metrics_there_is_no_best(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3), CheckpointConfig(keep=1))
    checkpoints = Checkpoints(tmp_path, KEEP_ALL, read_only=True)
    assert checkpoints.steps() == [3] and checkpoints.best() is None


def test_a_metric_that_was_not_measured_cannot_be_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CheckpointConfig(best="f1")) as checkpoints:
        with pytest.raises(
            UserError, match=r"config\.checkpoint\.best='f1': no validation metric; one of accuracy, loss"
        ):
            checkpoints.save(1, make_state(), make_data(), {"loss": 1.0, "accuracy": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == []


def test_a_saved_step_is_never_overwritten(tmp_path: Path) -> None:
    state = saved(tmp_path)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        with pytest.raises(UserError, match="step 1 is saved already"):
            checkpoints.save(1, make_state(scale=5.0), make_data())
        assert equal(checkpoints.restore_params(1, abstract(state.params)), state.params)


@pytest.mark.parametrize("item", ["params", "rest", "data"])
def test_a_flipped_bit_is_found(tmp_path: Path, item: str) -> None:
    state = saved(tmp_path, (1, 2))
    path = arrays_file(tmp_path / "2", item)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    iterator = make_data()
    position = iterator.get_state()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore(2, abstract(state), iterator)
        message = str(caught.value)
        assert str(path) in message and "checksum" in message and "\n" not in message
        assert f"delete {tmp_path / '2'} to go on from step 1" in message
        assert iterator.get_state() == position
        assert equal(checkpoints.restore(1, abstract(state), iterator), state)


@pytest.mark.parametrize("victim", ["params", "rest", "manifest.json"])
def test_a_run_goes_on_from_the_newest_step_that_is_intact(tmp_path: Path, victim: str, caplog: Any) -> None:
    state = saved(tmp_path, (1, 2, 3))
    originals = contents(tmp_path)
    for step in (2, 3):
        path = tmp_path / str(step) / victim if "." in victim else arrays_file(tmp_path / str(step), victim)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    broken = contents(tmp_path)
    assert sum(broken[name] != originals[name] for name in broken) == 2
    iterator = make_data()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints, caplog.at_level("WARNING"):
        found = checkpoints.restore_newest(abstract(state), iterator)
        assert found is not None and found[0] == 1 and equal(found[1], state)
        assert checkpoints.steps() == [1]
        warnings = [record.getMessage() for record in caplog.records]
        for step in (2, 3):
            found_line = f"set aside as {step}.damaged, and the run goes on from step 1"
            line = next(text for text in warnings if found_line in text)
            assert str(tmp_path / str(step)) in line and "delete" not in line and "\n" not in line
        assert contents(tmp_path) == {re.sub(r"^([23])/", r"\1.damaged/", name): data for name, data in broken.items()}
        checkpoints.save(2, state, make_data())
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_where_every_step_is_damaged_nothing_is_moved(tmp_path: Path) -> None:
    state = saved(tmp_path, (1, 2))
    for step in (1, 2):
        arrays_file(tmp_path / str(step), "params").write_bytes(b"")
    before = contents(tmp_path)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        with pytest.raises(UserError, match=rf"{tmp_path / '2'}/.*damaged \(0 bytes"):
            checkpoints.restore_newest(abstract(state), make_data())
        assert contents(tmp_path) == before
    with Checkpoints(tmp_path / "empty", KEEP_ALL) as checkpoints:
        assert checkpoints.restore_newest(abstract(state), make_data()) is None


def test_every_truncated_or_missing_file_is_found(tmp_path: Path) -> None:
    state = saved(tmp_path / "good")
    names = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*") if path.is_file()]
    items = [name for name in names if len(name.parts) > 2] + [Path("1/manifest.json")]
    assert {"params", "rest", "data"} <= {name.parts[1] for name in items}
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    for name in items:
        path = tmp_path / "bad" / name
        whole = path.read_bytes()
        for damage in (lambda path, whole: path.write_bytes(whole[:-1] if len(whole) < 9 else whole[:-8]),
                       lambda path, whole: path.unlink()):  # fmt: skip
            damage(path, whole)
            with (
                pytest.raises(UserError, match="no other step is saved: start again in another workdir") as caught,
                Checkpoints(tmp_path / "bad", KEEP_ALL, read_only=True) as checkpoints,
            ):
                checkpoints.restore(1, abstract(state), make_data())
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
            path.write_bytes(whole)
    with Checkpoints(tmp_path / "bad", KEEP_ALL, read_only=True) as checkpoints:  # all damage was mended
        assert equal(checkpoints.restore(1, abstract(state), make_data()), state)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"\xff{" + data, None])
def test_what_orbax_notes_beside_the_items_decides_nothing(tmp_path: Path, damage: Any) -> None:
    """It is written after the manifest, which therefore has no checksum of it."""
    state = saved(tmp_path)
    notes = [path for path in (tmp_path / "1").iterdir() if path.is_file() and path.name != "manifest.json"]
    assert {path.name for path in notes} == {"_CHECKPOINT_METADATA", "commit_success.txt"}
    for path in notes:
        path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert equal(checkpoints.restore(1, abstract(state), make_data()), state)


def test_parameters_restore_although_the_rest_is_damaged(tmp_path: Path) -> None:
    state = saved(tmp_path)
    arrays_file(tmp_path / "1", "rest").write_bytes(b"")
    with Checkpoints(tmp_path, KEEP_ALL, read_only=True) as checkpoints:
        assert equal(checkpoints.restore_params(1, abstract(state.params)), state.params)
        with pytest.raises(UserError, match="damaged"):
            checkpoints.restore(1, abstract(state), make_data())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["layer"].update(bias=jnp.zeros(5)),
            r"params/layer/bias is float32\[4\] in the checkpoint, float32\[5\] in",
        ),
        (lambda p: p.update(half=jnp.zeros(8)), r"params/half is bfloat16\[8\] in the checkpoint, float32\[8\] in"),
        (lambda p: p.update(extra=jnp.zeros(8)), r"params/extra is not there in the checkpoint, float32\[8\] in"),
        (lambda p: p.pop("half"), r"params/half is bfloat16\[8\] in the checkpoint, not there in"),
    ],
)
def test_another_model_is_refused_by_naming_the_array(tmp_path: Path, change: Any, message: str) -> None:
    state = saved(tmp_path)
    params = jax.tree.map(lambda leaf: leaf, state.params)
    change(params)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        with pytest.raises(UserError, match=message):
            checkpoints.restore_params(1, abstract(params))
        with pytest.raises(UserError, match=message):
            checkpoints.restore(1, abstract(dataclasses.replace(state, params=params)), make_data())


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    state = saved(tmp_path)
    other = dataclasses.replace(state, opt_state=optax.sgd(0.1, momentum=0.9).init(state.params))
    with (
        Checkpoints(tmp_path, KEEP_ALL) as checkpoints,
        pytest.raises(UserError, match="opt_state/0/trace/half is not there"),
    ):
        checkpoints.restore(1, abstract(other), make_data())


def test_a_process_writes_the_positions_that_it_keeps(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        for step, kept in ((1, ("a", "b")), (2, ("a",))):
            checkpoints.save(step, state, Data(kept))
        checkpoints.wait()
        for step, names in ((1, {"data/a.json", "data/b.json"}), (2, {"data/a.json"})):
            files = json.loads((tmp_path / str(step) / "manifest.json").read_text())["files"]
            assert {name for name in files if name.startswith("data/") and name.endswith(".json")} == names
        with pytest.raises(UserError, match=r"another iterator's: \['a'\]"):
            checkpoints.restore(2, abstract(state), make_data())
        assert equal(checkpoints.restore(1, abstract(state), make_data()), state)


def test_a_flipped_bit_in_the_manifest_is_found(tmp_path: Path) -> None:
    state = saved(tmp_path)
    path = tmp_path / "1" / "manifest.json"
    whole = path.read_bytes()
    assert json.loads(whole)["step"] == 1
    places = [at for at in range(len(whole)) if not whole[at : at + 1].isspace()]
    with Checkpoints(tmp_path, KEEP_ALL, read_only=True) as checkpoints:
        for at in places[:: len(places) // 40]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(UserError, match=r"manifest\.json: .*damaged"):
                checkpoints.restore_params(1, abstract(state.params))
        path.write_bytes(whole)
        assert equal(checkpoints.restore_params(1, abstract(state.params)), state.params)


def test_a_step_that_is_not_saved(tmp_path: Path) -> None:
    state = saved(tmp_path / "run", (1, 2))
    with (
        Checkpoints(tmp_path / "run", KEEP_ALL) as checkpoints,
        pytest.raises(UserError, match=r"step 7 .*saved: 1, 2"),
    ):
        checkpoints.restore_params(7, abstract(state.params))
    checkpoints = Checkpoints(tmp_path / "none", KEEP_ALL, read_only=True)
    assert checkpoints.latest() is None and not (tmp_path / "none").exists()


def test_leftovers_of_a_killed_run_are_not_listed_and_are_removed(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2))
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")  # killed while saving
    shutil.copytree(tmp_path / "1", tmp_path / "0.deleted")  # killed while deleting
    reader = Checkpoints(tmp_path, KEEP_ALL, read_only=True)
    assert (
        reader.steps() == [1, 2]
        and (tmp_path / "3.orbax-checkpoint-tmp").exists()
        and (tmp_path / "0.deleted").exists()
    )
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(3, make_state(), make_data())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


def test_a_run_killed_while_saving_keeps_only_whole_steps(tmp_path: Path) -> None:
    """A process saves on and on with keep=1 until it is killed; what is listed then restores."""
    program = f"""
    import sys
    sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
    import conftest
    from test_checkpoint import *
    checkpoints, state, data = Checkpoints(Path({str(tmp_path)!r}), CheckpointConfig(keep=1)), make_state(), make_data()
    for step in range(1, 10_000):
        checkpoints.save(step, state, data, {{"loss": 1 / step}})
        print(step, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.steps() and (checkpoints.latest() or 0) >= 4
        for step in checkpoints.steps():
            assert equal(checkpoints.restore(step, abstract(make_state()), make_data()), make_state())


@pytest.mark.parametrize("finish", ["save", "wait", "close"])
def test_a_failed_save_raises_and_leaves_the_earlier_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: str
) -> None:
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lepton_jax.manifest.write_json", full)
        checkpoints.save(2, make_state(), make_data())
        finishers = {"save": lambda: checkpoints.save(3, make_state(), make_data()), "wait": checkpoints.wait,
                     "close": checkpoints.close}  # fmt: skip
        with pytest.raises(UserError) as caught:
            finishers[finish]()
    assert isinstance(caught.value.__cause__, OSError)
    assert str(caught.value) == (
        f"{tmp_path / '2'}: cannot be written (No space left on device); earlier steps are untouched; make space, then "
        "give the same command again"
    )
    assert checkpoints.steps() == [1]
    with Checkpoints(tmp_path, CheckpointConfig(keep=1)) as checkpoints:  # after space was made
        checkpoints.save(2, make_state(), make_data())
    assert checkpoints.steps() == [2] and [path.name for path in tmp_path.iterdir()] == ["2"]


def test_a_folder_opened_to_read_cannot_be_saved_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read only"):
        Checkpoints(tmp_path, KEEP_ALL, read_only=True).save(1, make_state(), make_data())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match=r"checkpoints: cannot be written \(File exists\)"):
        Checkpoints(tmp_path / "checkpoints", KEEP_ALL)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclasses.dataclass
class Int8:
    values: Any
    scale: Any


def int8_params() -> dict[str, Any]:
    values = jnp.arange(-64, 64, dtype=jnp.int8).reshape(2, 8, 8)
    return {"layers": {"kernel": Int8(values, jnp.full((2, 1, 8), 0.5)), "norm": jnp.ones((2, 8))}}


def test_params_alone_with_weights_of_a_class_of_their_own(tmp_path: Path) -> None:
    params = int8_params()
    save_params(tmp_path / "int8", params)
    loaded = load_params(tmp_path / "int8", jax.eval_shape(int8_params))
    assert isinstance(loaded["layers"]["kernel"], Int8) and loaded["layers"]["kernel"].values.dtype == jnp.int8
    assert equal(loaded, params)
    manifest = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    assert manifest["arrays"]["params/layers/kernel/values"] == "int8[2,8,8]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8"]


def test_params_alone_are_checked_too(tmp_path: Path) -> None:
    folder, shapes = tmp_path / "int8", jax.eval_shape(int8_params)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        load_params(folder, shapes)
    save_params(folder, int8_params())
    with pytest.raises(UserError, match="is there already"):
        save_params(folder, int8_params())
    shapes["layers"]["norm"] = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
    with pytest.raises(UserError, match=r"params/layers/norm is float32\[2,8\] in the checkpoint, bfloat16"):
        load_params(folder, shapes)
    path = arrays_file(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"damaged \(\d+ bytes instead of \d+\); save it again"):
        load_params(folder, jax.eval_shape(int8_params))


@pytest.mark.parametrize(("verbosity", "chatter"), [(absl.logging.INFO, False), (absl.logging.DEBUG, True)])
def test_orbax_reports_every_save_only_where_that_is_asked_for(tmp_path: Path, verbosity: int, chatter: bool) -> None:
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Collector()
    before, logger = absl.logging.get_verbosity(), absl.logging.get_absl_logger()
    logger.addHandler(handler)
    try:
        absl.logging.set_verbosity(verbosity)
        absl.logging.info("of our own")
        saved(tmp_path)
    finally:
        absl.logging.set_verbosity(before)
        logger.removeHandler(handler)
    assert records[0].getMessage() == "of our own"
    assert any("orbax" in record.pathname for record in records) is chatter


def test_a_save_that_fails_for_a_reason_of_any_kind_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, KEEP_ALL)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the storage service is away\nretried 3 times")

    with monkeypatch.context() as patch:
        patch.setattr("lepton_jax.manifest.write", broken)
        checkpoints.save(2, make_state(), make_data())
        with pytest.raises(UserError) as caught:
            checkpoints.wait()
    checkpoints.close()
    assert str(caught.value) == (
        f"{tmp_path / '2'}: cannot be written (the storage service is away); earlier steps are untouched; mend that, "
        "then give the same command again"
    )
    assert checkpoints.steps() == [1] and "Traceback" not in capfd.readouterr().err
