"""Every recipe loads, resolves, says how it is run, and describes a model that can be built."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.config import resolve, runs
from lepton_jax.core import trees
from lepton_jax.models.transformer import Transformer, abstract_params

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


CASES = [(path, arg) for path in CONFIGS for arg in variants(path)]


def test_there_are_recipes():
    assert {"quickstart", "pretrain", "finetune"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_docstring_has_a_command_that_applies(path):
    line = command(path)
    assert f"--config=configs/{path.name}" in line and "--workdir=" in line
    overrides = re.findall(r"--config\.([\w.]+)=('[^']*'|\S+)", line)
    assert len(overrides) == line.count("--config."), line
    config = load(path).get_config()
    config.update_from_flattened_dict({name: value.strip("'") for name, value in overrides})
    resolve(config)


@pytest.mark.parametrize(("path", "arg"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_its_models_pass_eval_shape(path, arg):
    config = load(path).get_config(arg) if arg else load(path).get_config()
    if config.stage == "convert":
        config.source = "runs/model"
    if config.stage in SOURCES and not config.data.train:
        config.data.train = SOURCES[config.stage]
    for _, run in runs(resolve(config)):
        head, outputs = ("masked_lm", 0) if run.task.name == "masked_lm" else ("classification", 2)
        settings = {**vars(run.model), "vocab_size": run.model.vocab_size or run.data.tokenizer_size}
        model = Transformer(type(run.model)(**settings), head, outputs)
        params = abstract_params(model)
        ids = jax.ShapeDtypeStruct((2, run.data.max_length), jnp.int32)
        out = jax.eval_shape(lambda params, ids, model=model: model.apply({"params": params}, ids, ids), params, ids)
        assert out["hidden"].shape == (2, run.data.max_length, run.model.hidden_size)
        assert trees.count(params) > run.model.hidden_size * settings["vocab_size"]
        assert out["logits"].shape[-1] == (outputs or settings["vocab_size"])


def test_variants_of_a_recipe_differ():
    for path in CONFIGS:
        module = load(path)
        made = [str(module.get_config(arg).to_dict()) for arg in variants(path)[1:]]
        assert len(set(made)) == len(made), path.name
