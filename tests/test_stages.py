"""Whole runs of a very small model: what they leave behind, how they resume, and what they start from."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lepton_jax import hub, infer, plan, stages, workdir
from lepton_jax.config import InferConfig, default_config, resolve
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import Int8
from lepton_jax.models.transformer import Transformer
from lepton_jax.stages import finetuning, training
from lepton_jax.train import loop
from lepton_jax.train.logging import read_metrics
from lepton_jax.workdir import read_json

REQUIRED = (
    "pretrain.loss_first", "pretrain.loss_last", "pretrain.masked_accuracy", "pretrain.tokens_per_second",
    "finetune.accuracy", "finetune.f1", "finetune.majority_accuracy", "finetune.from_scratch_accuracy",
    "int8.accuracy", "int8.agreement", "int8.size_ratio", "int8.speedup", "wall_seconds",
)  # fmt: skip
TIMED = ("wall_seconds", "int8.speedup", "pretrain.tokens_per_second", "pretrain.utilisation")  # differ from run to run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def differing(a, b) -> set[str]:
    """Returns the paths of the leaves that differ."""
    flat = [{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)} for t in (a, b)]
    assert flat[0].keys() == flat[1].keys()
    return {path for path in flat[0] if not np.array_equal(flat[0][path], flat[1][path])}


def run(config, folder: Path, **changes):
    """Runs a recipe with changes `section__field=value`."""
    for path, value in changes.items():
        *sections, name = path.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value
    return stages.run(resolve(config), folder)


def test_a_quickstart_leaves_all_its_files(quickstart):
    assert {path.name for path in quickstart.iterdir()} == {
        "config.json", "summary.json", "report.html", "pretrain", "finetune", "from_scratch"
    }  # fmt: skip
    common = {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "summary.json",
        "report.html",
        "model.json",
        "tokenizer",
    }
    assert {path.name for path in (quickstart / "pretrain").iterdir()} == common
    assert {path.name for path in (quickstart / "from_scratch").iterdir()} == {
        *common, "predictions.jsonl", "reference.json"
    }  # fmt: skip
    fine = quickstart / "finetune"
    assert {path.name for path in fine.iterdir()} == {
        *common, "predictions.jsonl", "reference.json", "examples.jsonl", "int8"
    }  # fmt: skip
    assert {path.name for path in (fine / "int8").iterdir()} == {
        "model.json", "tokenizer", "params", "predictions.jsonl", "reference.json"
    }  # fmt: skip
    for part in ("pretrain", "finetune", "from_scratch"):
        events = list((quickstart / part / "tensorboard").glob("events.out.tfevents.*"))
        assert len(events) == 1 and events[0].stat().st_size > 100
        assert f"<h2>{part}</h2>" in (quickstart / "report.html").read_text()
    assert [line["text"] for line in lines(fine / "examples.jsonl")] == ["bright sweet", "sour bleak"]
    assert {line["prediction"] for line in lines(fine / "examples.jsonl")} <= {"bad", "good"}


def test_a_model_has_a_reference_of_its_validation_texts(quickstart):
    """Which its predictor chooses lengths by, and compares other texts with."""
    for folder, precision in ((quickstart / "finetune", "float32"), (quickstart / "finetune" / "int8", "int8")):
        predictor = infer.load(folder, precision, InferConfig(devices=1), compiled=False)
        assert predictor.profile is not None and predictor.profile.count == 36  # 240 * 0.15
        assert predictor.buckets.lengths[-1] == 16
        texts = [line["text"] for line in lines(quickstart / "finetune" / "predictions.jsonl")]
        near, far = infer.drift(predictor.profile, texts), infer.drift(predictor.profile, ["a"] * 40)
        assert near["length"]["p_value"] > 1e-3 > far["length"]["p_value"]
        assert near["embedding"]["distance"] < far["embedding"]["distance"]
    assert infer.load(quickstart / "finetune", task="embedding", compiled=False).profile is None


def test_the_summary_holds_the_figures(quickstart):
    summary = json.loads((quickstart / "summary.json").read_text())
    assert set(REQUIRED) <= set(summary)
    for name, value in summary.items():
        if not name.endswith((".data", ".evaluated_on", ".calibration", ".slices")):
            assert isinstance(value, (int, float)) and math.isfinite(value), name
    for name in summary:
        if name.endswith(("accuracy", "f1", "agreement")):
            assert 0 <= summary[name] <= 1, name
    steps = [line for line in read_metrics(quickstart / "pretrain") if "loss" in line]
    assert summary["pretrain.loss_first"] == steps[0]["loss"] != summary["pretrain.loss_last"] == steps[-1]["loss"]
    assert summary["int8.size_ratio"] > 2 and summary["finetune.evaluated_on"] == "test"
    parts = [
        json.loads((quickstart / part / "summary.json").read_text())
        for part in ("pretrain", "finetune", "from_scratch")
    ]
    assert summary["wall_seconds"] > sum(part["wall_seconds"] for part in parts)
    assert summary["finetune.from_scratch_accuracy"] == parts[2]["finetune.accuracy"]


def test_the_figures_are_those_of_the_predictions(quickstart):
    fine = quickstart / "finetune"
    summary, predictions = json.loads((fine / "summary.json").read_text()), lines(fine / "predictions.jsonl")
    assert len(predictions) == summary["finetune.data"]["test"]["examples"] > 20
    for part, own in (("finetune", predictions), ("int8", lines(fine / "int8" / "predictions.jsonl"))):
        right = np.mean([line["label"] == line["prediction"] for line in own])
        assert summary[f"{part}.accuracy"] == pytest.approx(right)
        assert summary[f"{part}.loss"] == pytest.approx(np.mean([line["loss"] for line in own]))
    texts, labels = [line["text"] for line in predictions], [line["label"] for line in predictions]
    float32, int8 = infer.load(quickstart), infer.load(quickstart, "int8")
    exact, rounded = float32(texts), int8(texts)
    assert summary["finetune.accuracy"] == np.mean(
        [out["label"] == label for out, label in zip(exact, labels, strict=True)]
    )
    agreement = np.mean([one["label"] == other["label"] for one, other in zip(exact, rounded, strict=True)])
    assert summary["int8.agreement"] == pytest.approx(agreement)
    assert [out["score"] for out in exact] == pytest.approx([line["score"] for line in predictions], abs=1e-5)
    assert [out["score"] for out in exact] != [out["score"] for out in rounded]
    counts = {label: labels.count(label) for label in ("bad", "good")}
    assert summary["finetune.majority_accuracy"] == counts["good"] / len(labels) > 0.5  # "good" leads in train


def test_the_int8_folder_loads_as_what_the_run_measured(quickstart):
    predictor = infer.load(quickstart / "finetune" / "int8", "int8")
    assert isinstance(predictor.params["layers_0"]["feed_forward"]["up"]["kernel"], Int8)
    line = lines(quickstart / "finetune" / "int8" / "predictions.jsonl")[0]
    assert predictor([line["text"]])[0]["score"] == pytest.approx(line["score"], abs=1e-5)


def test_fine_tuning_started_from_the_pretrained_model_and_from_its_tokenizer(quickstart):
    records = {
        part: json.loads((quickstart / part / "config.json").read_text())["config"]
        for part in ("finetune", "from_scratch")
    }
    assert records["finetune"]["model"]["init"] == str(quickstart / "pretrain")
    assert records["from_scratch"]["model"]["init"] == "" and records["from_scratch"]["data"]["tokenizer"]
    bundles = [hub.load(quickstart / part) for part in ("pretrain", "finetune", "from_scratch")]
    assert len({bundle.tokenizer.fingerprint for bundle in bundles}) == 1
    tables = [np.asarray(bundle.params["embeddings"]["token"]) for bundle in bundles]
    near, far = np.abs(tables[0] - tables[1]).max(), np.abs(tables[0] - tables[2]).max()
    assert 0 < near < 0.1 < far, "the fine-tuned table is the pretrained one, moved a little"


def test_the_same_command_again_repeats_nothing(quickstart, tiny_config, monkeypatch):
    before, summary = contents(quickstart), json.loads((quickstart / "summary.json").read_text())
    monkeypatch.setattr(stages, "quickstart", None)
    assert stages.run(resolve(tiny_config("quickstart")), quickstart) == summary
    assert contents(quickstart) == before


@pytest.mark.parametrize("stage", ["quickstart", "pretrain", "finetune"])
def test_a_dry_run_says_what_each_training_needs_and_writes_nothing(quickstart, tiny_config, tmp_path, stage):
    config = tiny_config(stage)
    config.dry_run = True
    if stage == "finetune":
        config.model.init = str(quickstart / "pretrain")
    summary = stages.run(resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    groups = {"pretrain", "finetune"} if stage == "quickstart" else {stage}
    assert {name.split(".")[0] for name in summary} == groups
    for group in groups:
        assert summary[f"{group}.fits"] is True and summary[f"{group}.needed_gib"] > summary[f"{group}.state_gib"] > 0
    if stage != "finetune":  # the vocabulary of the data may be smaller than the one that is assumed
        real = json.loads((quickstart / "summary.json").read_text())["pretrain.parameters"]
        assert real <= summary["pretrain.parameters"] < 2 * real


def test_an_automatic_mesh_is_chosen_before_anything_is_written(tiny_config, tmp_path, capsys):
    config = tiny_config("pretrain")
    config.dry_run, config.mesh.shape, config.train.batch_size = True, "auto", 4
    summary = stages.run(resolve(config), tmp_path / "run")
    assert summary["pretrain.mesh"] == "data=4,fsdp=1,tensor=2,sequence=1"
    assert "config.mesh.shape: data=4,tensor=2; of " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_a_vocabulary_that_the_mesh_does_not_divide_gets_rows_of_zeros(make_bundle, tiny_config, tmp_path):
    """And trains as it does where nothing is split."""
    bundle = make_bundle(labels=("bad", "good"))
    odd = dataclasses.replace(bundle.config, vocab_size=401)
    table = bundle.params["embeddings"]["token"]
    assert table.shape[0] > 401 >= bundle.tokenizer.vocab_size
    params = bundle.params | {"embeddings": bundle.params["embeddings"] | {"token": table[:401]}}
    card = dataclasses.replace(bundle.card, model=odd)
    hub.write(
        tmp_path / "odd", hub.Bundle(Transformer(odd, card.head, card.num_outputs), params, bundle.tokenizer, card)
    )
    losses, tables = {}, {}
    for shape in ("data=4,tensor=2", "data=8"):
        config = tiny_config("finetune")
        config.model = default_config("finetune").model
        config.model.init, config.mesh.shape, config.compress.method = str(tmp_path / "odd"), shape, "none"
        config.train.steps = 4
        if shape == "data=4,tensor=2":
            config.dry_run = True
            stages.run(resolve(config), tmp_path / "dry")
            config.dry_run = False
        stages.run(resolve(config), tmp_path / shape)
        losses[shape] = [line["loss"] for line in read_metrics(tmp_path / shape) if "loss" in line]
        tables[shape] = np.asarray(hub.load(tmp_path / shape).params["embeddings"]["token"])
    split, whole = tables.values()
    assert (split.shape[0], whole.shape[0]) == (402, 401) and not split[401].any()
    assert np.abs(whole - table[:401]).max() > 1e-3, "it has trained"
    np.testing.assert_allclose(split[:401], whole, atol=1e-4)
    np.testing.assert_allclose(*losses.values(), rtol=1e-4)


@pytest.mark.once
def test_an_out_of_memory_says_what_the_step_needs(tiny_config, tmp_path, monkeypatch):
    def put_batch(batch, mesh):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")

    monkeypatch.setattr(sharding, "put_batch", put_batch)
    with pytest.raises(UserError, match=r"^out of memory: a step needs \d.*less needs a smaller train\.batch_size"):
        stages.run(resolve(tiny_config("pretrain")), tmp_path / "run")


@pytest.mark.once
def test_a_quickstart_whose_end_was_lost_repeats_no_training(quickstart, tiny_config, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(quickstart, folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    for part in ("pretrain", "finetune", "from_scratch"):  # a run's folder is part of its config
        for file in (folder / part).rglob("*.json"):
            file.write_text(file.read_text().replace(str(quickstart), str(folder)))
    monkeypatch.setattr(training, "fit", None)
    before = contents(folder)
    summary, old = (
        stages.run(resolve(tiny_config("quickstart")), folder),
        json.loads((quickstart / "summary.json").read_text()),
    )
    after = contents(folder)
    assert set(after) - set(before) == {"summary.json", "report.html"} and before.items() <= after.items()
    assert {name: summary[name] for name in summary if name not in TIMED} == {
        name: old[name] for name in old if name not in TIMED
    }


@pytest.mark.once
def test_a_chain_without_the_run_from_scratch(quickstart, tiny_config, tmp_path, monkeypatch):
    """As a chain that has one would leave it, but for that run."""
    folder, config = tmp_path / "run", tiny_config("quickstart")
    shutil.copytree(quickstart, folder)
    shutil.rmtree(folder / "from_scratch")
    for name in ("summary.json", "report.html", "config.json"):
        (folder / name).unlink()
    for part in ("pretrain", "finetune"):
        for file in (folder / part).rglob("*.json"):
            file.write_text(file.read_text().replace(str(quickstart), str(folder)))
    shutil.move(folder, tmp_path / "parts")
    folder.mkdir()
    config.from_scratch = False
    workdir.claim(folder, resolve(config))
    for part in ("pretrain", "finetune"):
        shutil.move(tmp_path / "parts" / part, folder / part)
    monkeypatch.setattr(training, "fit", None)
    summary, old = stages.run(resolve(config), folder), read_json(quickstart / "summary.json")
    left_out = {name for name in old if ".from_scratch_" in name}
    assert len(left_out) == 2 and summary.keys() == old.keys() - left_out
    assert {name: summary[name] for name in summary if name not in TIMED} == {
        name: old[name] for name in summary if name not in TIMED
    }
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "summary.json", "report.html", "pretrain", "finetune"
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "<h2>pretrain</h2>" in page and "<h2>finetune</h2>" in page and "<h2>from_scratch</h2>" not in page
    assert "<code>from_scratch</code>" not in page


class Killed(Exception):
    pass


@pytest.mark.once
def test_a_pretraining_without_isolation_has_the_same_targets_and_other_losses(
    quickstart, tiny_config, tmp_path, monkeypatch
):
    put_batch, seen = sharding.put_batch, []
    monkeypatch.setattr(sharding, "put_batch", lambda batch, mesh: seen.append(batch) or put_batch(batch, mesh))
    changes = {"data__tokenizer": str(quickstart / "pretrain"), "data__isolate": False}
    summary = run(tiny_config("pretrain"), tmp_path / "run", **changes)
    assert not read_json(tmp_path / "run" / "config.json")["config"]["data"]["isolate"]
    together, apart = (
        [line for line in read_metrics(folder) if "loss" in line]
        for folder in (tmp_path / "run", quickstart / "pretrain")
    )
    assert [line["weight"] for line in together] == [line["weight"] for line in apart] and len(apart) > 3
    assert all(a["loss"] != b["loss"] for a, b in zip(together, apart, strict=True))
    old = read_json(quickstart / "pretrain" / "summary.json")["pretrain.validation_loss"]
    assert summary["pretrain.validation_loss"] != pytest.approx(old, rel=1e-6)
    assert len(seen) > 8, "of training and of validation"
    assert all("documents" in batch and batch["attention_mask"].max() == 1 for batch in seen)
    assert max(batch["documents"].max() for batch in seen) > 1


@pytest.mark.once
def test_a_run_interrupted_again_and_again_gives_the_same_result(quickstart, tiny_config, tmp_path, monkeypatch):
    config, killed = tiny_config("finetune"), tmp_path / "killed"
    changes = {"data__tokenizer": str(quickstart / "pretrain"), "checkpoint__every": 6}
    straight = run(config, tmp_path / "straight", **changes)

    def stop(*arguments, **keywords):
        raise Killed

    def half(*arguments, **keywords):
        loop.fit(*arguments, **keywords, until=6)
        raise Killed

    for module, name, broken, steps in (
        (training, "fit", half, {"6"}),  # in the middle of training
        (finetuning, "compare", stop, {"6", "12"}),  # trained and quantised, the int8 model not yet measured
        (finetuning.readings, "in_short", stop, {"6", "12"}),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, broken)
            run(config, killed, **changes)
        assert steps >= {path.name for path in (killed / "checkpoints").iterdir()} >= {max(steps, key=int)}
        assert (killed / "int8").exists() == (name == "compare" or (killed / "int8").exists()) and not (
            killed / "summary.json"
        ).exists()
    resumed = run(config, killed, **changes)
    assert {k: v for k, v in resumed.items() if k not in TIMED} == {k: v for k, v in straight.items() if k not in TIMED}
    assert not differing(hub.load(killed).params, hub.load(tmp_path / "straight").params)
    losses = [
        {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}
        for folder in (killed, tmp_path / "straight")
    ]
    assert losses[0].items() >= losses[1].items() and len(losses[1]) > 5


@pytest.mark.once
def test_fine_tuning_takes_over_the_encoder_and_not_the_head(quickstart, tiny_config, tmp_path):
    """At a rate of 0 a step changes nothing, so the result is what training started from."""
    still = {"train__steps": 1, "train__learning_rate": 0.0, "compress__method": "none", "infer__texts": ()}
    source = hub.load(quickstart / "pretrain").params
    config = tiny_config("finetune")  # with the defaults of a recipe, which give way to the model's own settings
    config.model.update(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, max_positions=512)
    run(config, tmp_path / "a", model__init=str(quickstart / "pretrain"), **still)
    model = hub.load(tmp_path / "a").config
    assert (model.hidden_size, model.num_layers, model.max_positions) == (16, 2, 16)
    run(tiny_config("finetune"), tmp_path / "b", data__tokenizer=str(quickstart / "pretrain"), **still)
    started, scratch = hub.load(tmp_path / "a").params, hub.load(tmp_path / "b").params
    assert {"embeddings", "layers", "final_norm", "head"} == set(source) == set(started) - {"pooler"}
    for name in ("embeddings", "layers", "final_norm"):
        assert not differing(started[name], source[name])
    assert differing(scratch["embeddings"], source["embeddings"]) and differing(scratch["layers"], source["layers"])
    for name in ("head", "pooler"):
        assert not differing(started[name], scratch[name]), "it is new, and the same as without init"
    assert started["head"].keys() != source["head"].keys()


@pytest.mark.once
@pytest.mark.parametrize("name", ["good", "fine"])
def test_fine_tuning_again_keeps_the_head_where_the_labels_are_the_same(
    quickstart, tiny_config, corpus, tmp_path, name
):
    labelled = (corpus / "labelled.jsonl").read_text().replace('"good"', f'"{name}"')
    (tmp_path / "labelled.jsonl").write_text(labelled)
    still = {
        "train__steps": 1,
        "train__learning_rate": 0.0,
        "train__seed": 1,
        "compress__method": "none",
        "infer__texts": (),
    }
    train = f"jsonl:{tmp_path}/labelled.jsonl"
    run(tiny_config("finetune"), tmp_path / "a", model__init=str(quickstart), data__train=train, **still)
    started, source = hub.load(tmp_path / "a").params, hub.rescaled(hub.load(quickstart)).params
    assert not differing(started["layers"], source["layers"])
    assert not differing(started["pooler"], source["pooler"])
    assert ("['output']['kernel']" in differing(started["head"], source["head"])) == (name != "good")


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__hidden_size": 32}, r"config\.model\.hidden_size=32: the model in \S+ has 16; leave the field out"),
        ({"model__gated": True}, r"config\.model\.gated=True: the model in \S+ has False; leave the field out"),
        ({"data__max_length": 20, "model__max_positions": 512},
         r"config\.data\.max_length=20: longer than the model in \S+; at most 16"),
        ({"model__init": "finetune/int8"}, r"config\.model\.init='\S+': holds int8 weights; training needs float32"),
        ({"model__init": "nowhere"}, r"nowhere: no such folder; a model is a folder"),
        ({"data__validation_share": 0.0}, r"data\.validation: there is no example to validate on"),
        ({"model__vocab_size": 64, "model__init": ""}, r"config\.model\.vocab_size=64: the tokenizer has 400 pieces"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_start_from_is_refused(quickstart, tiny_config, tmp_path, changes, message):
    changes = dict(changes)
    init = changes.pop("model__init", "pretrain")
    with pytest.raises(UserError, match=message):
        run(tiny_config("finetune"), tmp_path / "run", model__init=init and str(quickstart / init), **changes)
    assert not list((tmp_path / "run").iterdir()), "a corrected command must be able to use the folder"


@pytest.mark.once
def test_regression_from_end_to_end(quickstart, tiny_config, corpus, tmp_path):
    summary = run(
        tiny_config("finetune"), tmp_path, task__name="regression", data__train=f"csv:{corpus}/rated.csv",
        data__label="rating", data__tokenizer=str(quickstart / "pretrain"),
    )  # fmt: skip
    figures = ("mean_squared_error", "mean_absolute_error", "r2")
    assert all(math.isfinite(summary[f"{part}.{name}"]) for part in ("finetune", "int8") for name in figures)
    assert "finetune.majority_accuracy" not in summary and "int8.agreement" not in summary
    predictions = lines(tmp_path / "predictions.jsonl")
    assert {line["label"] for line in predictions} == {2.5, -1.0} and "Predictions against labels" in (
        tmp_path / "report.html"
    ).read_text()
    error = np.mean([(line["label"] - line["prediction"]) ** 2 for line in predictions])
    assert summary["finetune.mean_squared_error"] == pytest.approx(error, rel=1e-4)
    assert summary["finetune.mean_squared_error"] != summary["int8.mean_squared_error"]
    out = infer.load(tmp_path, "int8")(["bright sweet", "sour bleak"])
    assert [list(one) for one in out] == [["score"], ["score"]] and all(isinstance(one["score"], float) for one in out)
    assert [line["prediction"] for line in lines(tmp_path / "examples.jsonl")] == pytest.approx(
        [one["score"] for one in out], abs=1e-5
    )


@pytest.mark.once
def test_a_quickstart_of_numbers_compares_errors(monkeypatch, tiny_config, tmp_path):
    config = tiny_config("quickstart")
    config.finetune.task.name = "regression"
    parts = {
        "pretrain": {},
        "finetune": {"finetune.mean_squared_error": 1.0},
        "from_scratch": {"finetune.mean_squared_error": 2.0},
    }
    monkeypatch.setattr(stages, "run", lambda config, folder: parts[folder.name])
    summary, _ = stages.quickstart(resolve(config), tmp_path)
    assert summary == {"finetune.mean_squared_error": 1.0, "finetune.from_scratch_mean_squared_error": 2.0}


@pytest.mark.once
def test_a_causal_model_from_text_to_perplexity(quickstart, tiny_config, tmp_path):
    config = tiny_config("pretrain")
    changes = {"task__name": "causal_lm", "model__causal": True, "data__tokenizer": str(quickstart / "pretrain")}
    summary = run(config, tmp_path / "a", **changes)
    _, task, model = plan.assume(resolve(config))
    assert model.head == task.head == "causal_lm", "so does a dry run have it"
    assert summary["pretrain.perplexity"] == pytest.approx(np.exp(summary["pretrain.validation_loss"]), rel=1e-6)
    assert 1 < summary["pretrain.perplexity"] < 800 and "pretrain.masked_accuracy" not in summary
    validated = [line for line in read_metrics(tmp_path / "a") if "validation/loss" in line]
    assert validated[-1]["validation/perplexity"] == summary["pretrain.perplexity"]
    assert 0 <= summary["pretrain.next_accuracy"] <= 1
    bundle = hub.load(tmp_path / "a")
    assert bundle.card.head == bundle.card.task.name == "causal_lm"
    packed = [line["weight"] for line in read_metrics(tmp_path / "a") if "weight" in line]
    assert min(packed) > 16 * 8, "rows hold several documents, whose tokens but one are targets"


def test_tensorflow_is_never_imported():
    """TFDS would import it at the first chance; a set is prepared and read, and everything imported."""
    script = """
import sys
from lepton_jax import infer, main, stages
from lepton_jax.data import sources
examples = sources.load("tfds:movie_sentiment:train[:20]")
assert len(examples) == 20 and set(examples.labels) <= {"negative", "positive"}
assert "tensorflow_datasets" in sys.modules
print(sorted(name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_convert_turns_a_checkpoint_into_a_workdir_and_back(make_bundle, tmp_path, cache):
    bert = {"norm_position": "post", "positions": "learned", "pooling": "cls", "norm_epsilon": 1e-12}
    hub.save(tmp_path / "theirs", make_bundle(**bert))
    changes = {"source": str(tmp_path / "theirs"), "cache": cache}
    summary = run(default_config("convert"), tmp_path / "ours", **changes)
    assert summary["convert.head"] == "classification" and summary["convert.initialised"] == []
    assert read_json(tmp_path / "ours" / "summary.json") == summary and (tmp_path / "ours" / "report.html").exists()
    changes = {"source": str(tmp_path / "ours"), "cache": cache, "form": "transformers"}
    run(default_config("convert"), tmp_path / "back", **changes)
    theirs, back = tmp_path / "theirs", tmp_path / "back" / "transformers"
    for name in ("config.json", "model.safetensors"):
        assert (theirs / name).read_bytes() == (back / name).read_bytes()
    texts = ["bright sweet", "sour"]
    assert infer.load(tmp_path / "ours")(texts) == infer.load(back)(texts)


def test_convert_refuses_before_it_writes(make_bundle, tmp_path, cache):
    hub.write(tmp_path / "ours", make_bundle())
    changes = {"source": str(tmp_path / "ours"), "cache": cache, "form": "transformers"}
    with pytest.raises(UserError, match="no family of `transformers`"):
        run(default_config("convert"), tmp_path / "back", **changes)
    assert not list((tmp_path / "back").iterdir())
