"""Every recipe loads, resolves, says how it is run, and describes a model that can be built."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub
from lepton_jax.config import LANGUAGE_MODELS, Config, TaskConfig, resolve, runs
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer, abstract_params

pytestmark = pytest.mark.once

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
# Recipes for a person's own files name no source; the command in their docstring does.
SOURCES = {"pretrain": "text:corpus/*.txt", "finetune": "jsonl:train.jsonl"}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(path: Path) -> str:
    """Returns the command of a recipe's docstring as one line."""
    text = re.sub(r"\\\n\s*", "", load(path).__doc__ or "")
    found = re.search(r"^ *(python -m lepton_jax\.main .*)$", text, re.MULTILINE)
    assert found, f"{path.name}: its docstring must have the command"
    return found[1]


def variants(path: Path) -> list[str]:
    """Returns "" and every ARG that the docstring names as `configs/NAME.py:ARG`."""
    return ["", *sorted(set(re.findall(rf"configs/{path.name}:(\w+)", load(path).__doc__ or "")))]


def described(path: Path, arg: str) -> list[Config]:
    """Returns the runs of a recipe, with whatever it leaves to a command filled in."""
    config = load(path).get_config(arg) if arg else load(path).get_config()
    if config.stage == "convert":
        config.source = "runs/model"
    if config.stage == "compare":
        config.a = config.b = "runs/model"
    if config.stage in ("ablate", "search") and not config.experiment:
        config.experiment = "experiments/mask_rate.py"
    if config.stage == "report":
        config.runs = "runs/*"
    if config.stage == "predict":
        config.infer.texts = ("a text",)
    if config.stage in SOURCES and not config.data.train:
        config.data.train = SOURCES[config.stage]
    return [run for _, run in runs(resolve(config))]


def build(run: Config, vocabulary: int = 0) -> Transformer:
    """Returns the model of a run whose tokenizer has exactly as many pieces as it asks for, or a vocabulary's."""
    language = run.task.name in LANGUAGE_MODELS
    size = vocabulary or run.model.vocab_size or -(-run.data.tokenizer_size // 64) * 64
    settings = dataclasses.replace(run.model, vocab_size=size)
    return Transformer(settings, run.task.name if language else "classification", 0 if language else 2)


CASES = [(path, arg) for path in CONFIGS for arg in variants(path)]


def test_there_are_recipes():
    assert {"quickstart", "pretrain", "finetune", "bert", "modern", "gpt2"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_docstring_has_a_command_that_applies(path):
    line = command(path)
    assert f"--config=configs/{path.name}" in line and "--workdir=" in line
    overrides = re.findall(r"--config\.([\w.]+)=('[^']*'|\S+)", line)
    assert len(overrides) == line.count("--config."), line
    named = re.search(rf"configs/{path.name}:(\w+)", line)
    config = load(path).get_config(*(named.groups() if named else ()))
    config.update_from_flattened_dict({name: value.strip("'") for name, value in overrides})
    resolve(config)


@pytest.mark.parametrize(("path", "arg"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_its_models_pass_eval_shape(path, arg):
    for run in described(path, arg):
        model = build(run)
        params, settings = abstract_params(model), model.config
        ids = jax.ShapeDtypeStruct((2, run.data.max_length), jnp.int32)
        out = jax.eval_shape(lambda params, ids, model=model: model.apply({"params": params}, ids, ids), params, ids)
        assert out["hidden"].shape == (2, run.data.max_length, run.model.hidden_size)
        assert trees.count(params) > run.model.hidden_size * settings.vocab_size
        assert out["logits"].shape[-1] == (model.num_outputs or settings.vocab_size)


SIZED = [(path, size) for path in CONFIGS if hasattr(load(path), "SCALES") for size in load(path).SCALES]
# recipe -> size -> parameters. A new number means that every checkpoint of that size no longer loads: change it
# together with the architecture, and for no other reason.
PARAMETERS = {
    "bert": {"tiny": 5_462_784, "small": 23_644_672, "base": 109_518_912, "large": 335_180_608},
    "gpt2": {"tiny": 5_518_848, "small": 23_633_920, "base": 124_475_904, "large": 354_871_296},
    "modern": {"tiny": 5_384_960, "small": 23_739_904, "base": 109_021_248, "large": 335_954_752},
}


@pytest.mark.parametrize(("path", "size"), SIZED, ids=lambda value: getattr(value, "stem", value))
def test_every_size_has_its_pinned_number_of_parameters(path, size):
    assert size in variants(path), "the docstring names it"
    (run,) = described(path, size)
    assert trees.count(abstract_params(build(run))) == PARAMETERS[path.stem][size]


def test_no_pin_is_left_over():
    assert {(name, size) for name, pins in PARAMETERS.items() for size in pins} == {(p.stem, size) for p, size in SIZED}
    assert set(PARAMETERS) == {"bert", "modern", "gpt2"} and all(len(pins) == 4 for pins in PARAMETERS.values())


@pytest.mark.parametrize(
    ("name", "size", "vocabulary", "published"),
    [
        ("bert", "base", 30_522, 109_514_298),  # BertForMaskedLM of bert-base-uncased and bert-large-uncased
        ("bert", "large", 30_522, 335_174_458),
        ("gpt2", "base", 50_257, 124_439_808),  # GPT2LMHeadModel of gpt2 and gpt2-medium
        ("gpt2", "large", 50_257, 354_823_168),
    ],
)
def test_sizes_are_those_of_the_published_models(name, size, vocabulary, published):
    (run,) = described(CONFIGS[0].with_name(f"{name}.py"), size)
    assert trees.count(abstract_params(build(run, vocabulary))) == published


@pytest.mark.parametrize("path", sorted({path for path, _ in SIZED}), ids=lambda path: path.stem)
def test_an_unknown_size_is_refused(path):
    with pytest.raises(UserError, match=rf"^configs/{path.name}:basee: unknown size; .*base"):
        load(path).get_config("basee")


FAMILIES = {"bert": "bert", "modern": "modernbert", "gpt2": "gpt2"}


@pytest.mark.parametrize("head", ["own", "classification"])
@pytest.mark.parametrize("path", sorted({path for path, _ in SIZED}), ids=lambda path: path.stem)
def test_a_family_of_transformers_holds_the_result(path, head, tmp_path):
    (run,) = described(path, "tiny")
    settings = dataclasses.replace(run.model, hidden_size=16, intermediate_size=64, num_heads=2, vocab_size=64)
    labels = ("a", "b") if head == "classification" else ()
    model = Transformer(settings, run.task.name if head == "own" else head, len(labels))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), abstract_params(model))
    task = run.task if head == "own" else TaskConfig(name="classification")
    bundle = hub.Bundle(model, params, None, hub.Card(settings, model.head, task, 32, labels))
    hub.save(tmp_path / "saved", bundle)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == FAMILIES[path.stem]
    again = hub.load(tmp_path / "saved")
    assert again.card.head == model.head

    def compare(path: str, found: jax.Array, wanted: jax.Array) -> None:
        unused = path == "layers/attention_norm/scale" and not settings.first_norm  # the stack has it, the model not
        np.testing.assert_array_equal(found[int(unused) :], wanted[int(unused) :], err_msg=path)

    trees.map_with_path(compare, again.params, dict(params))


def test_variants_of_a_recipe_differ():
    for path in CONFIGS:
        module = load(path)
        made = [str(module.get_config(arg).to_dict()) for arg in variants(path)[1:]]
        assert len(set(made)) == len(made), path.name
