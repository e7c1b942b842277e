"""The stage report: the same page of any runs, made anew each time."""

from __future__ import annotations

import pytest
from made import make_run, make_sweep, tuned

from lepton_jax import stages
from lepton_jax.config import default_config, resolve
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once


def report(folder, runs, **fields):
    config = default_config("report")
    config.update({"runs": runs, **fields})
    return stages.run(resolve(config), folder)


@pytest.fixture
def runs(tmp_path):
    for rate in (1e-4, 1e-2):
        for seed in range(2):
            changes = {"train.learning_rate": rate, "train.seed": seed}
            make_run(tmp_path / "runs" / f"{rate}_{seed}", changes=changes, **tuned(0.7 if rate == 1e-4 else 0.9, seed))
    return tmp_path / "runs"


def test_runs_without_a_plan_are_reported_and_again(runs, tmp_path):
    summary = report(tmp_path / "out", f"{runs}/*", x="train.learning_rate", title="Rates")
    assert summary == {"report.runs": 4, "report.complete": 4, "report.metrics": "finetune.accuracy"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# Rates") and "| learning_rate 0.0001 | " in text and "| learning_rate 0.01 | **" in text
    assert "lines_train.learning_rate_finetune.accuracy.pdf" in {
        path.name for path in (tmp_path / "out/figures").iterdir()
    }
    assert not (tmp_path / "out" / "config.json").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    (runs / "0.0001_0" / "report.html").write_text("a page")
    make_run(runs / "0.1_0", changes={"train.learning_rate": 0.1}, **tuned(0.5, 5))
    assert report(tmp_path / "out", f"{runs}/*,{runs}/0.1_0", title="Rates")["report.runs"] == 5
    again = (tmp_path / "out" / "report.html").read_text()
    assert again != page and 'href="../runs/0.0001_0/report.html"' in again


def test_a_real_run_is_reported(quickstart, tmp_path):
    summary = report(tmp_path, str(quickstart), metrics=("finetune.accuracy", "int8.accuracy", "wall_seconds"))
    assert summary["report.complete"] == 1
    text = (tmp_path / "report.md").read_text()
    assert "| quickstart | " in text and "there is nothing to compare it with" in text
    assert {"curves_validation_loss.svg", "bars_finetune.accuracy.svg"} <= {
        path.name for path in (tmp_path / "figures").iterdir()
    }
    inside = report(tmp_path / "two", f"{quickstart}/finetune,{quickstart}/from_scratch")
    assert inside["report.metrics"] == "finetune.accuracy" and inside["report.runs"] == 2


def test_mistakes(runs, tmp_path):
    def refused(message, folder="out", **fields):
        with pytest.raises(UserError, match=message) as caught:
            report(tmp_path / folder, **{"runs": f"{runs}/*"} | fields)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused(r"config\.runs='': name the folders of runs", runs="")
    refused(r"config\.by='model\.gated': is for the figure over config\.x", by="model.gated")
    refused("no such folder", runs=str(tmp_path / "nothing"))
    refused(r"has no metric 'finetune\.f1'; it has finetune\.accuracy", metrics=("finetune.f1",))
    refused(r"has no field 'train\.step'; did you mean \"train\.steps\"\?", x="train.step")
    refused("holds a run, for it has config.json", folder="runs/0.01_0")
    make_sweep(tmp_path / "sweep", {"a": {}}, lambda name, seed: None)
    refused("holds a run, for it has plan.json", folder="sweep")
    refused("none of 3 runs is complete", runs=str(tmp_path / "sweep"))
    make_run(runs / "other", {"finetune.accuracy": 0.5, "finetune.evaluated_on": "test"}, {"data.split_seed": 3})
    refused(r"finetune\.accuracy does not mean the same in all runs: config\.data\.split_seed is 0 in \S+, 3 in")
    make_run(runs / "other", {"pretrain.validation_loss": 0.5}, {}, "pretrain")
    refused(r"config\.metrics=\(\): the runs share no main metric")
