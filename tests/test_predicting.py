"""The stage "predict": files of every form, rows that are no texts, and commands that are given again."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lepton_jax import hub, infer, stages
from lepton_jax.config import InferConfig, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.stages import predicting

pytestmark = pytest.mark.once

TEXTS = ["abc de", "gh", "", "abc def gh ij kl mnop abc de", "b", "d\u00e9"]
PAIRS = ["b", "abc", "x", "", "de", "a b"]


@pytest.fixture(scope="module")
def model(make_bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "run"
    hub.write(folder, make_bundle())
    return folder


@pytest.fixture(scope="module")
def predictor(model):
    return infer.load(model, config=InferConfig((8,), (1, 4), 1), compiled=False)


def config(source, output, **changes):
    tree = {"input": str(source), "output": str(output), "lengths": (8,), "batch_sizes": (1, 4), "devices": 1}
    return resolve({"stage": "predict", "infer": tree | changes})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def close(found, wanted) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys() and one.get("warning") == other.get("warning")
        assert one.get("scores") == pytest.approx(other.get("scores"), abs=1e-5)


def write(folder: Path, kind: str) -> Path:
    path = folder / f"texts.{kind}"
    rows = [
        {"id": number, "text": text, "other": pair}
        for number, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True))
    ]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    table = io.StringIO()
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
    csv.writer(table, **style).writerows([["id", "text", "other"], *[list(row.values()) for row in rows]])
    texts = {"txt": "\n".join(TEXTS), "jsonl": "\n".join(map(json.dumps, rows))}
    path.write_text(texts.get(kind, table.getvalue()), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_files_of_every_form_give_a_line_a_text(model, predictor, tmp_path, kind):
    output = tmp_path / "out" / "predictions.jsonl"
    before = sorted(model.rglob("*"))
    summary = stages.run(config(write(tmp_path, kind), output), model)
    close(lines(output), predictor(TEXTS))
    assert (summary["predict.texts"], summary["predict.errors"], summary["predict.warnings"]) == (6, 0, 2)
    assert summary["predict.texts_per_second"] > 0
    assert sorted(model.rglob("*")) == before and [path.name for path in output.parent.iterdir()] == [output.name]
    if kind != "txt":
        stages.run(config(tmp_path / f"texts.{kind}", output, pair="other"), model)
        close(lines(output), predictor(TEXTS, PAIRS))


BAD = {
    "txt": ("ab\nb\xff\ncd".encode("latin-1"), "line 2: byte 0xff at 1 is not UTF-8"),
    "jsonl": (b'{"text": "ab"}\n{"text": \n{"text": "cd"}', "line 2: not valid JSON (Expecting value"),
    "jsonl, no text": (b'{"text": "ab"}\n{"Text": "x"}\n{"text": "cd"}', "line 2: no 'text'; it has 'Text'"),
    "jsonl, a number": (b'{"text": "ab"}\n{"text": 3}\n{"text": "cd"}', "line 2: 'text' is int, not a string"),
    "jsonl, a list": (b'{"text": "ab"}\n[1]\n{"text": "cd"}', "line 2: must be an object with 'text', not list"),
    "csv": (b"text,n\nab,1\nx\ncd,3", "line 3: 1 fields, but the first line names 2"),
    "csv, bytes": (b"text,n\nab,1\n\xff,2\ncd,3", "the text has half a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_in_its_place(model, predictor, tmp_path, name):
    data, message = BAD[name]
    source, output = tmp_path / f"texts.{name.partition(',')[0]}", tmp_path / "predictions.jsonl"
    source.write_bytes(data)
    summary = stages.run(config(source, output), model)
    found = lines(output)
    assert len(found) == 3 and list(found[1]) == ["error"] and found[1]["error"].startswith(message)
    close([found[0], found[2]], predictor(["ab", "cd"]))
    assert (summary["predict.texts"], summary["predict.errors"]) == (3, 1)


def test_a_row_of_parquet_without_text_is_an_error(model, tmp_path):
    table = pyarrow.Table.from_pylist([{"text": "ab"}, {"text": None}])
    pyarrow.parquet.write_table(table, tmp_path / "texts.parquet")
    stages.run(config(tmp_path / "texts.parquet", tmp_path / "p.jsonl"), model)
    assert lines(tmp_path / "p.jsonl")[1] == {"error": "row 2: 'text' is NoneType, not a string"}


@pytest.mark.parametrize(
    ("name", "data", "changes", "message"),
    [
        ("absent.txt", None, {}, "no such file"),
        ("a.csv", b"a,b\n1,2", {}, "no column 'text'; set config.infer.text to one of 'a', 'b'"),
        ("a.csv", b"text,b\n1,2", {"pair": "c"}, "no column 'c'; set config.infer.pair to one of 'text', 'b'"),
        ("a.tsv", b"", {}, "no column 'text'; set config.infer.text to one of its columns; it has none"),
        ("a.parquet", b"PAR1 and no more", {}, "not a Parquet file that can be read"),
    ],
)
def test_a_file_without_texts_is_refused(model, tmp_path, name, data, changes, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        stages.run(config(tmp_path / name, tmp_path / "p.jsonl", **changes), model)
    assert not (tmp_path / "p.jsonl").exists()


def test_an_interrupted_command_goes_on_where_it_was(model, tmp_path, monkeypatch):
    source, output = tmp_path / "texts.txt", tmp_path / "p.jsonl"
    source.write_text("\n".join(TEXTS * 4), encoding="utf-8")
    job = config(source, tmp_path / "whole.jsonl")
    stages.run(job, model)

    def interrupted(*arguments):
        yield from islice(stream(*arguments), 7)
        raise KeyboardInterrupt

    stream = predicting._stream
    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stages.run(config(source, output), model)
    part = tmp_path / "p.jsonl.part"
    assert not output.exists() and len(lines(part)) == 7
    part.write_text(part.read_text(encoding="utf-8") + '{"label": "ba', encoding="utf-8")
    marked = part.read_text(encoding="utf-8").replace('"label"', '"Label"', 1)
    part.write_text(marked, encoding="utf-8")  # so that what was done can be told from what is done again
    summary = stages.run(config(source, output), model)
    assert [summary[f"predict.{name}"] for name in ("texts", "warnings", "errors")] == [24, 8, 0] and not part.exists()
    first, *others = lines(output)
    close([{"label" if name == "Label" else name: value for name, value in first.items()}, *others],
          lines(tmp_path / "whole.jsonl"))  # fmt: skip
    assert "Label" in first


def test_a_model_that_was_trained_again_begins_again(model, tmp_path):
    source, output, folder = tmp_path / "texts.txt", tmp_path / "p.jsonl", Path(shutil.copytree(model, tmp_path / "m"))
    source.write_text("ab\ncd", encoding="utf-8")
    job = predicting._job(config(source, output).infer, folder)
    assert predicting._start(output, job) == predicting._start(output, job) == {"texts": 0, "errors": 0, "warnings": 0}
    (tmp_path / "p.jsonl.part").write_text('{"error": "x"}\n')
    assert predicting._start(output, job) == {"texts": 1, "errors": 1, "warnings": 0}
    (folder / "model.json").write_text((folder / "model.json").read_text() + "\n")
    assert predicting._start(output, predicting._job(config(source, output).infer, folder))["texts"] == 0


def test_a_parquet_file_that_is_damaged_inside_is_one_line(model, tmp_path):
    source = write(tmp_path, "parquet")
    data = bytearray(source.read_bytes())
    index = 8 + int.from_bytes(data[-8:-4], "little")  # at the end, which is as it was
    data[4:-index] = b"\xff" * (len(data) - 4 - index)
    source.write_bytes(data)
    with pytest.raises(UserError, match=r"texts.parquet: is damaged after row 0 \(.*; restore it, then go on"):
        stages.run(config(source, tmp_path / "p.jsonl"), model)


def test_what_another_command_left_is_begun_again(model, tmp_path):
    source, output = tmp_path / "texts.txt", tmp_path / "p.jsonl"
    source.write_text("ab\ncd", encoding="utf-8")
    (tmp_path / "p.jsonl.part").write_text('{"label": "x"}\n')
    (tmp_path / "p.jsonl.part.json").write_text("{}")
    stages.run(config(source, output), model)
    assert len(lines(output)) == 2 and lines(output)[0]["label"] != "x"


def command(*overrides: str, folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    small = ["--config.infer.lengths=(8,)", "--config.infer.batch_sizes=(4,)", "--config.infer.devices=1"]
    root = Path(__file__).parent.parent
    line = [
        sys.executable,
        "-m",
        "lepton_jax.main",
        "--config=configs/predict.py",
        f"--workdir={folder}",
        *small,
        *overrides,
    ]
    return subprocess.run(line, input=stdin, capture_output=True, check=False, cwd=root)


def test_the_command_reads_lines_as_they_come(model, predictor, tmp_path):
    output = tmp_path / "p.jsonl"
    done = command("--config.infer.input=-", f"--config.infer.output={output}", folder=model, stdin=b"ab\r\n\ngh ij\n")
    assert done.returncode == 0, done.stderr
    close(lines(output), predictor(["ab", "", "gh ij"]))
    assert f"predictions in {output}" in done.stdout.decode()
    done = command("--config.infer.texts=('ab', 'gh')", folder=model)
    assert done.returncode == 0, done.stderr
    shown = [line.split("\t") for line in done.stdout.decode().splitlines() if "\t" in line]
    assert [text for text, _ in shown] == ["ab", "gh"]
    close([json.loads(found) for _, found in shown], predictor(["ab", "gh"]))


def test_a_mistake_of_the_command_is_one_line(model, tmp_path):
    done = command("--config.infer.input=texts.txt", f"--config.infer.output={tmp_path}/p.jsonl", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.decode().count("\n") == 1
    assert b"config.infer.input='texts.txt': no such file" in done.stderr


def test_a_float_checkpoint_is_no_int8_one(model, tmp_path):
    """A card that says int8 over float weights, as of a folder that was put together by hand."""
    folder = Path(shutil.copytree(model, tmp_path / "mixed"))
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"weights": "int8"}))
    with pytest.raises(UserError, match=r"is not there in the checkpoint, .* in the model|in the checkpoint"):
        infer.load(folder, "int8")
