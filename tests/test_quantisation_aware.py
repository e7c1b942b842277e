"""Quantisation-aware fine-tuning from end to end: what training saw is written, and no stop changes it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lepton_jax import hub, infer, plan, stages
from lepton_jax.config import resolve
from lepton_jax.core import trees
from lepton_jax.core.weights import Weight
from lepton_jax.data import splits
from lepton_jax.stages import compression, finetuning, training
from lepton_jax.stages.assessment import Judge, encode
from lepton_jax.tasks.viewed import Viewed
from lepton_jax.train import loop
from lepton_jax.train.logging import read_metrics

pytestmark = pytest.mark.once
FORM = {"inputs": "percentile", "percentile": 95.0, "smooth": 0.5, "texts": 64}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def recipe_of(tiny_config, quickstart):
    """Returns a function that gives the recipe of a quantisation-aware training from the quickstart's model."""

    def make(init="finetune", **compress):
        config = tiny_config("finetune")
        config.data.batching, config.infer.lengths, config.infer.texts = "padded", (16,), ()
        config.model.init = str(quickstart / init)
        config.optim.layer_decay, config.train.learning_rate = 0.9, 1e-2
        config.train.batch_size = config.data.max_examples = 128  # one batch is all that there is
        config.checkpoint.every = config.evaluate.every = 6
        config.compress.update(aware=True, **FORM)
        config.compress.update(compress)
        return config

    return make


@pytest.fixture(scope="module")
def aware(recipe_of, tmp_path_factory):
    """Returns (resolved config, folder, summary) of a finished one."""
    config, folder = resolve(recipe_of()), tmp_path_factory.mktemp("aware") / "run"
    return config, folder, stages.run(config, folder)


def loss(bundle, precision, examples, config):
    """Returns the mean loss of a bundle, by the path of predictions and without the temperature, which comes last."""
    bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, scale=1.0))
    found = infer.from_bundle(bundle, precision, config.infer).outputs(examples.texts)
    return Judge(bundle.card).measure(encode(examples, bundle.tokenizer, bundle.card), found)["loss"]


def weights(params):
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, Weight))
    return {trees.path_str(path): leaf for path, leaf in found if isinstance(leaf, Weight)}


def test_what_validation_saw_is_the_int8_model_that_is_written(aware):
    config, folder, summary = aware
    validated = [line for line in read_metrics(folder) if "validation/loss" in line]
    best = max(validated, key=lambda line: (line["validation/accuracy"], -line["step"]))
    examples = splits.load_splits(config.data, "classes").validation
    written = loss(hub.load(folder / "int8"), "int8", examples, config)
    assert written == pytest.approx(best["validation/loss"], rel=1e-5)
    assert loss(hub.load(folder), "float32", examples, config) != pytest.approx(written, rel=1e-3)
    assert summary["finetune.loss"] != summary["int8.loss"] and "int8.agreement" in summary


def test_training_begins_with_the_int8_form_of_its_start_and_keeps_that_form(aware, quickstart):
    config, folder, _ = aware
    init, after = hub.rescaled(hub.load(quickstart / "finetune")), hub.load(folder)
    train = splits.load_splits(config.data, "classes").train
    wanted, moved = (compression.calibrated(one, config.compress, train) for one in (init, after))
    found = weights(hub.load(folder / "int8").params)
    assert {path for path in wanted if path in found} == set(wanted) and len(wanted) > 5
    for path, inputs in wanted.items():
        np.testing.assert_array_equal(found[path].step, inputs.step)
        assert (found[path].smooth is None) == (inputs.smooth is None)
        if inputs.smooth is not None:
            np.testing.assert_array_equal(found[path].smooth, inputs.smooth)
    (first, *_) = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    start = compression.quantised(init, config.compress, train, wanted)
    assert first == pytest.approx(loss(start, "int8", train, config), rel=1e-4), "of all examples, before any update"
    assert first != pytest.approx(loss(init, "float32", train, config), rel=1e-3)
    assert any(np.abs(wanted[path].step / moved[path].step - 1).max() > 0.01 for path in wanted), "the model has moved"
    again = compression.quantised(after, config.compress, train, wanted).params
    jax.tree.map(np.testing.assert_array_equal, again, hub.load(folder / "int8").params)


def test_the_float_model_is_one_of_plain_floats(aware, quickstart):
    _, folder, _ = aware
    bundle = hub.load(folder)
    assert bundle.card.weights == "float32" and not weights(bundle.params)
    assert jax.tree.structure(bundle.params) == jax.tree.structure(hub.load(quickstart / "finetune").params)
    assert {"label", "score"} <= infer.load(folder)(["bright sweet"])[0].keys()


def test_a_run_that_was_killed_goes_on_to_the_same_bits(aware, recipe_of, tmp_path, monkeypatch):
    _, straight, summary = aware

    def half(*arguments, **keywords):
        loop.fit(*arguments, **keywords, until=6)
        raise Killed

    config = resolve(recipe_of())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "fit", half)
        stages.run(config, tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["6"]
    resumed = stages.run(config, tmp_path / "killed")
    timed = ("wall_seconds", "int8.speedup")
    assert {k: v for k, v in resumed.items() if k not in timed} == {k: v for k, v in summary.items() if k not in timed}
    for part in ("", "int8"):
        one, other = (hub.load(folder / part).params for folder in (tmp_path / "killed", straight))
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_part_that_the_start_lacks_rounds_each_token_by_itself(recipe_of):
    config = resolve(recipe_of("pretrain", inputs="absmax"))
    inputs = finetuning._Tuning(config, plan.make_mesh(config, "config")).inputs
    assert inputs and {path.split("/")[0] for path in inputs} == {"layers"}, "neither pooler nor head is there yet"
    assert all(isinstance(each.step, np.ndarray) for each in inputs.values())


def test_a_forecast_is_one_of_the_step_that_rounds(recipe_of):
    config, task, _ = plan.assume(resolve(recipe_of()))
    assert config.compress.aware and isinstance(task, Viewed)
