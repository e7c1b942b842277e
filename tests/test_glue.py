"""configs/glue.py on rows in the form in which GLUE is downloaded: TFDS reads them, without TensorFlow."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.text  # registers GLUE

from lepton_jax.config import METRICS, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.data.splits import load_splits
from lepton_jax.evaluate.lines import KINDS

pytestmark = pytest.mark.once

RECIPE = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "glue.py"))
TASKS, get_config = RECIPE["TASKS"], RECIPE["get_config"]
ROWS = {"train": 12, "dev": 6, "test": 4}


def table(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def texts(part: str, number: int, columns: int) -> list[str]:
    return [f'{part} says {number} in column {column}, "so' for column in range(columns)]


def write_mrpc(folder: Path) -> dict[str, str]:
    """Writes MRPC as its authors have it: all pairs in one file, and which of them are for validation in another."""
    names = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    pairs = [(part, number) for part in ("train", "dev") for number in range(ROWS[part])]
    rows = [[str(n % 2), f"{part}1{n}", f"{part}2{n}", *texts(part, n, 2)] for part, n in pairs]
    table(folder / "train", [["\ufeffQuality", *names[1:]], *rows])
    table(folder / "dev_ids", [row[1:3] for row in rows if row[1].startswith("dev")])
    table(folder / "test", [names, *(["0", "a", "b", *texts("test", n, 2)] for n in range(ROWS["test"]))])
    return {name: str(folder / name) for name in ("train", "dev_ids", "test")}


def write(folder: Path, name: str, own) -> None:
    for part, count in ROWS.items():
        for kind in ("_matched", "_mismatched") if name == "mnli" and part != "train" else ("",):
            rows = []
            for number in range(count):
                label = own.label_classes[number % len(own.label_classes)] if own.label_classes else f"{number / 4}"
                columns = texts(part + kind, number, len(own.text_features))
                if name == "cola":
                    label = str(own.label_classes.index(label))
                if name == "cola" and part != "test":
                    rows.append(["source", label, "", *columns])
                else:
                    rows.append(columns if part == "test" else [*columns, label])
            header = [*own.text_features.values(), *([] if part == "test" else [own.label_column])]
            bare = name == "cola" and part != "test"
            table(folder / own.data_dir / f"{part}{kind}.tsv", rows if bare else [header, *rows])


@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_its_columns_and_is_tested_on_validation(name, tmp_path, monkeypatch):
    own = tfds.builder(f"glue/{name}", data_dir=str(tmp_path)).builder_config
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download", lambda *_: write_mrpc(tmp_path / "raw"))
    monkeypatch.setattr(
        manager, "download_and_extract", lambda *_: write(tmp_path / "raw", name, own) or tmp_path / "raw"
    )
    recipe = get_config(name)
    recipe.data.cache = str(tmp_path / "cache")
    config, task = resolve(recipe), TASKS[name]
    assert config.checkpoint.best == task.best in METRICS[config.task.name]
    assert config.train.steps == 3 * task.examples // 32
    splits = load_splits(config.data, KINDS[config.task.name])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (ROWS["train"], ROWS["dev"], 0)
    part = "dev_matched" if name == "mnli" else "dev"
    assert f'{part} says 0 in column 0, "so' in splits.validation.texts
    assert (splits.validation.pairs is None) == (len(own.text_features) == 1)
    if task.pair:
        assert f'{part} says 0 in column 1, "so' in splits.validation.pairs
    assert list(map(len, splits.out_of_domain.values())) == ([ROWS["dev"]] if name == "mnli" else [])
    if task.task == "regression":
        assert sorted(splits.train.labels) == [number / 4 for number in range(12)]
    else:  # in GLUE's order: F1 and the like are of the last of two
        assert splits.labels == tuple(own.label_classes)
    assert "tensorflow" not in sys.modules


def test_f1_is_of_the_pairs_that_say_the_same():
    classes = {name: tfds.builder(f"glue/{name}").info.features["label"].names for name in ("mrpc", "qqp")}
    assert classes == {"mrpc": ["not_equivalent", "equivalent"], "qqp": ["not_duplicate", "duplicate"]}
    assert all(names != sorted(names) for names in classes.values())
    assert {TASKS[name].best for name in classes} == {"f1"}


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match=r'^configs/glue\.py:sst: unknown task; did you mean "sst2"\?$'):
        get_config("sst")
