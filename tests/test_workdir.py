from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import workdir
from lepton_jax.config import Config, MeshConfig, QuickstartConfig, TrainConfig, to_dict
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once

CONFIG = Config()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_claim_records_what_the_run_depends_on(tmp_path: Path) -> None:
    workdir.claim(tmp_path / "a" / "b", CONFIG)
    record = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert record["config"]["train"]["steps"] == CONFIG.train.steps
    assert record["config"]["optim"]["no_decay"] == list(CONFIG.optim.no_decay)
    assert record["versions"]["jax"] == jax.__version__
    assert set(record["versions"]) == {
        "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "lepton_jax"
    }  # fmt: skip
    (start,) = record["starts"]
    assert start["devices"]["count"] == jax.device_count()
    assert start["devices"]["platform"] == jax.devices()[0].platform
    assert start["processes"] == 1 and start["mesh"] == {"config": "data=-1"}
    assert record["command"] and "git_revision" in record
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


@pytest.mark.parametrize("config", [CONFIG, QuickstartConfig()])
def test_the_same_config_resumes_and_touches_nothing(tmp_path: Path, config: Config | QuickstartConfig) -> None:
    workdir.claim(tmp_path, config)
    before, modified = contents(tmp_path), (tmp_path / "config.json").stat().st_mtime_ns
    workdir.claim(tmp_path, config)
    assert contents(tmp_path) == before and (tmp_path / "config.json").stat().st_mtime_ns == modified


def test_another_config_is_refused_by_naming_the_fields(tmp_path: Path) -> None:
    workdir.claim(tmp_path, CONFIG)
    before = contents(tmp_path)
    other = dataclasses.replace(CONFIG, train=TrainConfig(seed=7, steps=5, batch_size=2, learning_rate=0.5))
    with pytest.raises(UserError) as caught:
        workdir.claim(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path}: holds a run with another config (train.steps=1000 there, 5 here; train.batch_size=32 there, "
        "2 here; train.learning_rate=0.001 there, 0.5 here; and 1 more); choose another workdir"
    )
    assert contents(tmp_path) == before


def test_a_field_that_was_not_recorded_has_its_default(tmp_path: Path) -> None:
    """So a run goes on with a package that has got a new field since, and a run that sets it is another one."""
    workdir.claim(tmp_path, CONFIG)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["train"]["seed"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    workdir.claim(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"train\.seed=0 there, 3 here"):
        workdir.claim(tmp_path, dataclasses.replace(CONFIG, train=TrainConfig(seed=3)))


def test_a_field_that_is_no_longer_known_is_a_difference(tmp_path: Path) -> None:
    workdir.claim(tmp_path, CONFIG)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["train"]["momentum"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"train\.momentum=0\.5 there, 'nothing' here"):
        workdir.claim(tmp_path, CONFIG)


def test_the_identity_of_a_config_is_what_makes_it_a_run_of_its_own(tmp_path: Path) -> None:
    def changed(**sections: Any) -> Config:
        return dataclasses.replace(CONFIG, **sections)

    same = (changed(mesh=MeshConfig("fsdp=-1")), changed(train=TrainConfig(profile=5)))
    assert all(config != CONFIG and workdir.identity(config) == workdir.identity(CONFIG) for config in same)
    others = (changed(train=TrainConfig(seed=1)), changed(train=TrainConfig(seed=2)), changed(stage="finetune"))
    digits = {workdir.identity(config) for config in (CONFIG, *others, QuickstartConfig())}
    assert len(digits) == 5 and all(len(each) == 10 and int(each, 16) >= 0 for each in digits)
    assert workdir.identity(CONFIG) == "d76711e865"  # a new field leaves it as it is, by its default


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds 'thesis\.tex' but no config\.json"):
        workdir.claim(tmp_path, CONFIG)
    assert contents(tmp_path) == before


def test_hidden_files_do_not_make_a_folder_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    workdir.claim(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON at line"),
        (lambda text: "", "not valid JSON at line 1"),
        (lambda text: '{"step": 1}', "holds no config"),
        (lambda text: "[1]", "holds no config"),
    ],
)
def test_a_damaged_config_json_is_refused(tmp_path: Path, damage, message: str) -> None:
    workdir.claim(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    path.write_text(damage(path.read_text()))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        workdir.claim(tmp_path, CONFIG)
    assert str(path) in str(caught.value)
    assert contents(tmp_path) == before


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(UserError, match="cannot be used as a work directory"):
            workdir.claim(path, CONFIG)
    assert file.read_text() == "mine"


def test_write_json_takes_numpy_and_jax_and_keeps_unicode(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    workdir.write_json(path, {"a": np.float32(0.5), "b": jnp.int32(3), "c": np.arange(2), "d": "好"})
    assert workdir.read_json(path) == {"a": 0.5, "b": 3, "c": [0, 1], "d": "好"}
    assert "好" in path.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    workdir.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"new": object()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"x\.json: cannot be written \(No space left on device\)"):
        workdir.write_json(path, {"new": 2})
    assert contents(tmp_path).keys() == {"x.json"} and workdir.read_json(path) == {"old": 1}


def test_a_disk_that_became_read_only_hides_no_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk refuses to delete too, even what is not there."""
    workdir.claim(tmp_path, CONFIG)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", read_only)
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(
            UserError, match=r"x\.json: cannot be written \(Read-only file system\); make it writable, t"
        ):
            workdir.write_json(tmp_path / "x.json", {})
        workdir.release(tmp_path)
    assert contents(tmp_path).keys() == {"config.json"}
    workdir.release(tmp_path)
    assert contents(tmp_path) == {}


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(
        UserError, match="process 1 does not see what process 0 wrote there; choose a workdir on a file"
    ):
        workdir.claim(tmp_path, CONFIG)
    workdir.write_json(tmp_path / "x.json", 1)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("quickstart", [False, True])
def test_the_same_run_may_go_on_elsewhere_and_every_place_is_recorded(tmp_path: Path, quickstart: bool) -> None:
    def config(**mesh: Any) -> Config | QuickstartConfig:
        run = dataclasses.replace(CONFIG, mesh=MeshConfig(**mesh))
        return QuickstartConfig(pretrain=run, finetune=run) if quickstart else run

    one, other = config(), config(shape="fsdp=-1", processes=2, process=0, coordinator="node:1", timeout=9.0)
    assert to_dict(one) != to_dict(other)
    workdir.claim(tmp_path, one)
    first = json.loads((tmp_path / "config.json").read_text())
    workdir.claim(tmp_path, other)
    workdir.claim(tmp_path, other)
    second = json.loads((tmp_path / "config.json").read_text())
    where = ["config.pretrain", "config.finetune"] if quickstart else ["config"]
    assert [start["mesh"] for start in second["starts"]] == [
        dict.fromkeys(where, shape) for shape in ("data=-1", "fsdp=-1")
    ]
    assert second["starts"][0] == first["starts"][0]
    assert {**second, "starts": None} == {**first, "starts": None}, "the config stays that of the first start"


@pytest.mark.parametrize("quickstart", [False, True])
def test_what_only_looks_on_makes_no_other_run(tmp_path: Path, quickstart: bool) -> None:
    def config(**train: Any) -> Config | QuickstartConfig:
        run = dataclasses.replace(CONFIG, train=TrainConfig(**train))
        return QuickstartConfig(pretrain=run, finetune=run) if quickstart else run

    workdir.claim(tmp_path, config())
    workdir.claim(tmp_path, config(wandb="project", profile=5))
    record = json.loads((tmp_path / "config.json").read_text())
    for run in ("pretrain", "finetune") if quickstart else ("train",):  # written before there was such a field
        train = record["config"][run]["train"] if quickstart else record["config"][run]
        del train["wandb"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    workdir.claim(tmp_path, config(wandb="project"))
    with pytest.raises(UserError, match="log_every=20 there, 7 here"):
        workdir.claim(tmp_path, config(wandb="project", log_every=7))


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        workdir.read_json(tmp_path / "absent.json")
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"x\.json: not UTF-8 text at byte 7"):
        workdir.read_json(tmp_path / "x.json")


def test_read_jsonl_leaves_out_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert workdir.read_jsonl(path) == []
    path.write_text('{"a": 1}\n{"a": "x\u2028y"}\n{"a": 3')
    assert workdir.read_jsonl(path) == [{"a": 1}, {"a": "x\u2028y"}]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"{broken", "line 2 is not valid JSON"),
        (b"[1]", "line 2 is no JSON object"),
        (b'"\xff"', "not UTF-8 text after line"),
    ],
)
def test_read_jsonl_names_a_damaged_line(tmp_path: Path, second: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + second + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        workdir.read_jsonl(path)
    assert str(path) in str(caught.value)


def test_flatten_keeps_order_and_leaves() -> None:
    assert workdir.flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_git_revision_is_of_the_tree_that_tracks_the_package(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert workdir.git_revision(package) is None  # no repository
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40 and workdir.git_revision(package) == commit
    installed = tmp_path / "venv"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert workdir.git_revision(installed) is None  # untracked: a virtual environment inside a repository
    (package / "__init__.py").write_text("changed = True")
    assert workdir.git_revision(package) == f"{commit}-dirty"


def test_a_run_that_wrote_nothing_gives_its_folder_back(tmp_path: Path) -> None:
    for made, kept in ((None, []), ("pretrain", []), ("pretrain/model.json", ["config.json", "pretrain"])):
        folder = tmp_path / str(kept) / str(made).replace("/", "_")
        workdir.claim(folder, Config())
        if made is not None:
            (folder / made).parent.mkdir(exist_ok=True)
            (folder / made).write_text("{}") if "." in made else (folder / made).mkdir()
        workdir.release(folder)
        assert sorted(entry.name for entry in folder.iterdir()) == kept
