"""Runs found in their folders: whole and half-written ones, seeds, sweeps, and what they are called."""

from __future__ import annotations

import json
import shutil

import pytest
from made import make_run, make_sweep, tuned, write_json

from lepton_jax import results
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once
SUMMARY = {"finetune.accuracy": 0.8, "finetune.data": {"train": {"examples": 12}}, "wall_seconds": 3.0}


def test_a_run_has_its_config_summary_and_provenance(tmp_path):
    (run,) = results.find(make_run(tmp_path / "a", SUMMARY, {"train.seed": 5}))
    assert (run.state, run.seed, run.name, run.hash) == ("complete", 5, "finetune", "")
    assert run.config["task.name"] == "classification" and run.summary["finetune.data.train.examples"] == 12
    assert run.record["git_revision"] == "abc" and run.devices == "1 x cpu (cpu)"
    assert run.metrics() == ["finetune.accuracy", "wall_seconds"], "counts of the data are no metrics"
    assert run.value("finetune.accuracy") == 0.8 and run.value("train.batch_size") == 32
    assert run.number("train.batch_size * finetune.data.train.examples") == 32 * 12


def test_what_a_run_lacks_is_said_with_what_it_has(tmp_path):
    (run,) = results.find(make_run(tmp_path / "a", SUMMARY | {"finetune.f1": None}))
    with pytest.raises(UserError, match=r"a: has no metric 'finetune\.f2'; it has finetune\.accuracy, wall_seconds"):
        run.value("finetune.f2")
    with pytest.raises(UserError, match=r"has no field 'train\.step'; did you mean \"train\.steps\"\?"):
        run.value("train.step")
    with pytest.raises(UserError, match=r"task\.name='classification' is no number"):
        run.number("task.name")
    assert run.number("finetune.f1") != run.number("finetune.f1"), "a metric that is not defined is NaN"


def test_folders_globs_and_several_paths(tmp_path):
    for name in ("a", "b", "c"):
        make_run(tmp_path / "runs" / name, SUMMARY, {"train.steps": ord(name)})
    (tmp_path / "runs" / "cache").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("x")
    make_run(tmp_path / "runs" / "compare", {"compare.x": 1}, {}, "compare")

    def found(*paths):
        return [run.folder.name for run in results.find(*paths)]

    assert found(tmp_path / "runs") == found(f"{tmp_path}/runs/*") == ["a", "b", "c"]
    assert found(tmp_path / "runs" / "b", f"{tmp_path}/runs/[ab]", tmp_path / "runs") == ["b", "a", "c"], "each once"


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "compare", {"compare.x": 1}, {}, "compare")
    for path, message in (
        ("empty", "empty: is no run, for it has no config.json, and holds none"), ("nothing", "no such folder"),
        ("e*x", "matches no folder of a run"), ("compare", "compare: is a 'compare', not a training"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            results.find(tmp_path / path)
    with pytest.raises(UserError, match="no folder to look for runs in"):
        results.find()


@pytest.mark.parametrize("harm", ["config", "no summary", "summary", "list"])
def test_half_written_folders_are_there_and_unfinished(tmp_path, harm):
    make_run(tmp_path / "whole", SUMMARY)
    folder = make_run(tmp_path / "half", SUMMARY)
    if harm == "no summary":
        (folder / "summary.json").unlink()
    elif harm == "list":
        (folder / "config.json").write_text("[1]")
    else:
        path = folder / f"{harm}.json"
        path.write_text(path.read_text()[:40])
    half, whole = results.find(tmp_path)
    assert (half.folder.name, half.state, whole.state) == ("half", "unfinished", "complete")
    assert len(results.frame(tmp_path)) == 2
    assert results.find(folder)[0].state == "unfinished"


def test_a_fine_tuning_over_seeds_is_a_run_for_each(tmp_path):
    make_run(tmp_path / "movie", {"finetune.accuracy": 0.7}, {"train.seed": 3, "train.seeds": 3})
    for seed in (3, 4):
        make_run(tmp_path / "movie" / f"seed_{seed}", SUMMARY, {"train.seed": seed})
    runs = results.find(tmp_path / "movie")
    assert [(run.seed, run.state) for run in runs] == [(3, "complete"), (4, "complete"), (5, "unfinished")]
    assert len({run.name for run in runs}) == 1 and runs[2].config["train.seed"] == 5


def test_a_plan_says_names_and_seeds(tmp_path):
    make_sweep(tmp_path, {"low": {"train.learning_rate": 1e-4}, "high": {"train.learning_rate": 1e-2}},
               lambda name, seed: None if (name, seed) == ("high", 1) else tuned(0.8, seed), seeds=2)  # fmt: skip
    runs = results.find(tmp_path)
    assert [(run.name, run.seed, run.state) for run in runs] == [
        ("low", 0, "complete"), ("low", 1, "complete"), ("high", 0, "complete"), ("high", 1, "unfinished")
    ]  # fmt: skip
    assert runs[3].hash == runs[3].folder.name == "0000000003" and runs[3].changes["train.learning_rate"] == 1e-2
    write_json(tmp_path / "failures.json", {"0000000003": "out of memory"})
    assert [run.failure for run in results.find(tmp_path)] == ["", "", "", "out of memory"]
    (tmp_path / "0000000003").mkdir()
    (tmp_path / "0000000003" / "failure.txt").write_text("bad <batch>\n")
    (tmp_path / "0000000000" / "failure.txt").write_text("of an earlier try, which has been repeated")
    assert [run.failure for run in results.find(tmp_path)] == ["", "", "", "bad <batch>"]


@pytest.mark.parametrize("plan", ["{}", '{"variants": [{"name": "a"}]}', '{"variants": 3}', "[", "[1]"])
def test_a_damaged_plan_is_named(tmp_path, plan):
    (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(UserError, match=r"plan\.json"):
        results.find(tmp_path)


def test_runs_are_called_what_differs_among_them(tmp_path):
    for number, (rate, gated) in enumerate([(0.15, False), (0.15, False), (0.3, True)]):
        make_run(tmp_path / str(number), {"x": 1}, {"task.mask_rate": rate, "model.gated": gated, "train.seed": number,
                                                    "train.log_every": number + 1}, "pretrain")  # fmt: skip
    names = [run.name for run in results.find(tmp_path)]
    assert sorted(names[0].split(", ")) == ["gated off", "mask_rate 0.15"] and names[0] == names[1]
    assert sorted(names[2].split(", ")) == ["gated on", "mask_rate 0.3"]


def test_a_field_that_an_older_config_lacks_is_its_default(tmp_path):
    make_run(tmp_path / "new", SUMMARY)
    old = make_run(tmp_path / "old", SUMMARY, {"train.seed": 1})
    record = json.loads((old / "config.json").read_text())
    del record["config"]["compress"]["smooth"]
    record["config"]["infer"]["batch_size"] = 64  # a field of its own
    write_json(old / "config.json", record)
    names = {run.folder.name: run.name for run in results.find(tmp_path)}
    assert names == {"new": "no batch_size", "old": "batch_size 64"}


def test_runs_that_differ_in_much_are_called_by_their_folders(tmp_path):
    much = {"train.steps": 7, "train.batch_size": 8, "optim.name": "sgd", "data.max_length": 64}
    for seed in range(2):
        make_run(tmp_path / f"base_{seed}", SUMMARY, {"train.seed": seed})
        make_run(tmp_path / f"other_{seed}", SUMMARY, {"train.seed": seed, **much})
    assert [run.name for run in results.find(tmp_path)] == ["base", "base", "other", "other"]
    make_run(tmp_path / "three", SUMMARY, {"train.seeds": 2, "data.min_characters": 5, **much})
    assert {run.name for run in results.find(tmp_path / "base_0", tmp_path / "three")} == {"base_0", "three"}


def test_a_table_has_a_row_a_run_and_can_be_filtered(tmp_path):
    make_run(tmp_path / "a", SUMMARY, {"train.seed": 1})
    make_run(tmp_path / "b", {"finetune.spearman": 0.5}, {"task.name": "regression"})
    table = results.frame(tmp_path)
    assert table["state"].tolist() == ["complete"] * 2 and table["git_revision"].tolist() == ["abc"] * 2
    assert (
        table["versions.jax"][0] == "0.12"
        and table["wall_seconds"][0] == 3.0
        and table["devices"][0] == "1 x cpu (cpu)"
    )
    assert table["finetune.accuracy"].isna().tolist() == [False, True]
    only = results.frame(tmp_path, where={"task.name": "classification", "seed": 1})
    assert only["folder"].tolist() == [str(tmp_path / "a")] and len(results.frame(tmp_path, where={"seed": 9})) == 0
    with pytest.raises(UserError, match=r"where='task\.nam': no run has it; did you mean \"task\.name\"\?"):
        results.frame(tmp_path, where={"task.nam": "regression"})


def test_a_quickstart_is_one_run_with_the_predictions_of_its_fine_tuning(quickstart, tmp_path):
    (run,) = results.find(quickstart)
    assert run.state == "complete" and "finetune.accuracy" in run.metrics() and run.seed == 0
    assert run.predictions("finetune.accuracy").is_file() and run.predictions("int8.accuracy").is_file()
    assert run.predictions("int8.accuracy") != run.predictions("finetune.accuracy")
    inside = results.find(*(quickstart / name for name in ("pretrain", "finetune", "from_scratch")))
    assert [run.config["stage"] for run in inside] == ["pretrain", "finetune", "finetune"]
    shutil.copytree(
        quickstart / "pretrain", tmp_path / "again" / "pretrain", ignore=shutil.ignore_patterns("checkpoints")
    )
    assert len(results.find(tmp_path / "again")) == 1
