"""The report of a sweep: every number, where it is from, and what is not there yet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made import make_config, make_run, make_sweep, tuned, write_json
from pages import Page

from lepton_jax.core.errors import UserError
from lepton_jax.report import write_sweep

pytestmark = pytest.mark.once
EVIL = "<script>alert(1)</script> & more"
QUALITY = {"low": 0.70, "high": 0.90}


def page(path: Path) -> Page:
    source = path.read_text(encoding="utf-8")
    assert not re.search("<script|<link|@import|<b>", source)
    return Page(source)


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings of three seeds, of which one failed, one was cut off and one has not begun."""
    folder = tmp_path_factory.mktemp("sweep")
    variants = {"low": {"train.learning_rate": 1e-4}, "high": {"train.learning_rate": 1e-2}, "none": {"train.steps": 9}}

    def run(name: str, seed: int):
        if name == "none" or (name, seed) == ("low", 2):
            return None
        curve = [{"step": step, "validation/loss": 1 / step} for step in (1, 2)]
        return tuned(QUALITY[name], 10 * seed + len(name)) | {"metrics": curve}

    told = "Parent: `configs/a.py:<b>`, and so on."
    make_sweep(folder, variants, run, title=EVIL, description=told, metrics=["finetune.accuracy", "finetune.loss"],
               figures=[{"kind": "curves"}, {"kind": "curves", "metric": "nothing"}])  # fmt: skip
    (folder / "0000000000" / "report.html").write_text("a page")
    (folder / "0000000002").mkdir()
    (folder / "0000000002" / "config.json").write_text('{"config": {"sta')
    (folder / "0000000007").mkdir()
    (folder / "0000000007" / "failure.txt").write_text(f"XlaRuntimeError: {EVIL}")
    write_sweep(folder)
    return folder


def test_what_is_complete_is_there_and_what_is_not_is_said(partial):
    found = page(partial / "report.html")
    assert "Parent: <code>configs/a.py:&lt;b&gt;</code>, and so on." in (partial / "report.html").read_text()
    assert EVIL in found.text and "5 of 9 runs are complete, 1 failed, 3 not yet" in found.text
    states = [row[-1] for row in found.rows if row[0] in ("low", "none", "high") and row[1:2] and row[1] in "012"]
    assert states.count("not run") == 2
    assert states.count("not complete") == 1 and states.count("failed") == 1
    assert [row for row in found.rows if row[-1] == f"XlaRuntimeError: {EVIL}"]
    assert ["low", "0.0001"] in [[row[0], row[1]] for row in found.rows if len(row) == 2]


def test_every_number_has_its_run(partial):
    found = page(partial / "report.html")
    summary = json.loads((partial / "0000000000" / "summary.json").read_text())
    row = next(row for row in found.rows if row[:3] == ["low", "0", "0000000000"])
    assert row[3] == f"{100 * summary['finetune.accuracy']:.1f}%" and "0000000000/report.html" in found.links
    assert "0000000001/report.html" not in found.links, "of a run without a page"
    assert ["devices", "1 x cpu (cpu)"] in found.rows and ["git revision", "abc"] in found.rows
    assert any(row[0] == "wall time" and "in all" in row[1] for row in found.rows)


def test_tables_and_figures_are_files_too(partial):
    text = (partial / "tables" / "finetune.accuracy.md").read_text()
    assert "| high | **" in text and "\\textbf{" in (partial / "tables" / "finetune.accuracy.tex").read_text()
    names = {path.name for path in (partial / "figures").iterdir()}
    assert names == {f"curves_validation_loss.{form}" for form in ("pdf", "svg", "png")}
    report = (partial / "report.md").read_text()
    assert "![validation loss over the steps of training](figures/curves_validation_loss.svg)" in report
    assert "loss ↓" in report and "high is better than low" in report
    found = page(partial / "report.html")
    assert all((partial / link).exists() for link in found.links)
    assert len(found.images) == 1 and found.images[0].startswith("data:image/svg+xml;base64,")
    assert "Not drawn: no run logged 'nothing'; logged are validation/loss" in found.text


def test_it_is_the_same_each_time_and_grows(partial, tmp_path):
    make_sweep(tmp_path, {"a": {}, "b": {}}, lambda name, seed: tuned(0.8, seed) if name == "a" else None)
    first = write_sweep(tmp_path).read_bytes()
    assert write_sweep(tmp_path).read_bytes() == first
    for seed in range(3):
        make_run(tmp_path / f"{3 + seed:010x}", changes={"train.seed": seed}, **tuned(0.6, 10 + seed))
    assert b"6 of 6 runs are complete" in write_sweep(tmp_path).read_bytes() != first
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"bars_finetune.accuracy.{form}" for form in ("pdf", "svg", "png")
    }, "without a plan's figures, the main metric"


def test_nothing_has_run(tmp_path):
    make_sweep(tmp_path, {"a": {}, "b": {}}, lambda name, seed: None)
    found = page(write_sweep(tmp_path))
    assert "0 of 6 runs are complete" in found.text and "No run is complete" in found.text
    assert "Not drawn: bars_finetune.accuracy: no run is complete" in found.text


def test_figures_that_do_not_mean_the_same_have_no_best(tmp_path):
    losses = {"mask_rate 0.15": 2.0, "mask_rate 0.3": 3.0}

    def run(name: str, seed: int):
        return {"summary": {"pretrain.validation_loss": losses[name] + seed / 100}}

    variants = {name: {"task.mask_rate": float(name.split()[1])} for name in losses}
    make_sweep(tmp_path, variants, run, stage="pretrain", metrics=["pretrain.validation_loss"])
    found = page(write_sweep(tmp_path))
    assert "pretrain.validation_loss does not mean the same in all runs: config.task.mask_rate is 0.15 in" in found.text
    assert "is better" not in found.text and "2.010 ± 0.010" in found.text
    assert "**" not in (tmp_path / "report.md").read_text() and "mean the same" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"metrics": []}, r"plan\.json: metrics=\[\]"), ({"metrics": ["finetune.f1"]}, r"has no metric 'finetune\.f1'"),
        ({"figures": [{"kind": "pie"}]}, r"figures\[0\]\.kind='pie': unknown figure"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_followed(tmp_path, plan, message):
    make_sweep(tmp_path, {"a": {}}, lambda name, seed: tuned(0.8, seed), **plan)
    with pytest.raises(UserError, match=message):
        write_sweep(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_without_a_plan_it_is_no_sweep(tmp_path):
    write_json(tmp_path / "config.json", {"config": make_config("finetune", {})})
    with pytest.raises(UserError, match=r"plan\.json: cannot be read"):
        write_sweep(tmp_path)
