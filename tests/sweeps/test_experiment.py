"""Experiments as files: what they resolve to, how their runs are called, and every mistake in one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lepton_jax import sweeps
from lepton_jax.config import AblateConfig, SearchConfig, resolve
from lepton_jax.core.errors import UserError
from lepton_jax.sweeps.experiment import write_plan

pytestmark = pytest.mark.once

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHIPPED = sorted(path for path in EXPERIMENTS.glob("*.py") if "\nPARENT = " in path.read_text())


def variants(expression: str) -> str:
    return f"def variants():\n    return {expression}"


def test_variants_are_resolved_differences_from_the_parent(experiment):
    file = experiment(
        'ALIKE = {"train.steps": 7}\n' + variants('product(vary("train.learning_rate", 0.1, 0.2), seeds(2))')
    )
    found = sweeps.load(file)
    assert (found.title, found.description) == ("Does it matter?", "It may.")
    members = found.members()
    assert [(each.config.train.learning_rate, each.config.train.seed, each.seed) for each in members] == [
        (0.1, 0, 0), (0.1, 1, 1), (0.2, 0, 0), (0.2, 1, 1)
    ]  # fmt: skip
    assert {each.config.train.steps for each in members} == {7}
    assert len({each.hash for each in members}) == 4
    again = sweeps.load(file).members()
    assert [each.hash for each in again] == [each.hash for each in members]


def test_a_variant_may_differ_from_what_all_have_in_common(experiment):
    found = sweeps.load(experiment('ALIKE = {"train.steps": 7}\n' + variants('case("longer", {"train.steps": 9})')))
    assert found.members()[0].config.train.steps == 9


def test_the_seed_of_a_chain_is_that_of_each_training(experiment):
    found = sweeps.load(experiment(variants("seeds(2, first=3)"), "quickstart"))
    for member, seed in zip(found.members(), (3, 4), strict=True):
        assert member.config.pretrain.train.seed == member.config.finetune.train.seed == member.seed == seed


def test_what_a_recipe_ties_together_stays_so():
    """In the quickstart one field of the architecture is that of both trainings."""
    found = sweeps.load(EXPERIMENTS / "mask_rate.py")
    member = found.member(sweeps.Variant({"pretrain.model.hidden_size": 64}))
    assert member.config.pretrain.model.hidden_size == member.config.finetune.model.hidden_size == 64


def test_a_plan_has_what_a_report_needs_and_plain_commands(experiment, tmp_path):
    found = sweeps.load(experiment(variants('product(vary("data.train", "text:a b.txt"), seeds(1))'), "pretrain"))
    members = found.members()
    write_plan(tmp_path, found, members)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["title"] == "Does it matter?" and plan["metrics"] == ["finetune.accuracy"] and plan["figures"] == []
    (variant,) = plan["variants"]
    assert variant["hash"] == members[0].hash and variant["name"] == "train text:a b.txt" and variant["seed"] == 0
    words = shlex.split(variant["command"])
    assert words[:3] == ["python", "-m", "lepton_jax.main"]
    assert words[3:] == [
        f"--config={found.recipe}", f"--workdir={tmp_path / members[0].hash}", "--config.data.train=text:a b.txt",
        "--config.train.seed=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (variants('vary("model.hiden_size", 1)'), r'config\.model\.hiden_size: unknown field; did you mean "hidden'),
        (variants('vary("modle.hidden_size", 1)'), r'config\.modle: unknown field; did you mean "model"'),
        (variants('vary("model", 1)'), r"config\.model=1: is a section"),
        (variants('vary("train.steps.more", 1)'), r"config\.train\.steps: is no section"),
        (variants('vary("train.steps", "many")'), r"config\.train\.steps='many': must be of type int"),
        (variants('vary("train.steps", 0)'), r"variant 'steps 0': config\.train\.steps=0: must be in \[1, inf\)"),
        (variants('vary("train.seed", 1, 1)'), r"'seed 1, seed 1' and 'seed 1, seed 1' are the same config \(\w{10}\)"),
        (variants('chain(case("parent"), case("again"))'), "'parent, seed 1' and 'again, seed 1' are the same config"),
        (
            variants('chain(vary("train.steps", 5), case("steps 5", {"optim.beta1": 0.5}))'),
            r"two variants are 'steps 5, seed 1', with other values of optim\.beta1, train\.steps; name them",
        ),
        (variants("[{}]"), r"variants\(\) holds \{\}; must hold what vary"),
        ("", r"has neither variants\(\) nor space\(\)"),
        ("METRICS = ()\n" + variants("seeds(1)"), "METRICS=.*must be names"),
        ("raise RuntimeError('oh')", r"cannot be loaded \(RuntimeError: oh\)"),
        (variants('zip(vary("a", 1), seeds(2))') + "\nvariants()", r"zip\(\): lists of 1, 2 variants"),
        ('PARENT = "configs/none.py"\n' + variants("seeds(1)"), r"PARENT='configs/none\.py': no such file"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(experiment, body, message):
    file = experiment(body)
    with pytest.raises(UserError, match=message) as caught:
        sweeps.load(file).members()
    assert "trial.py" in str(caught.value) and "\n" not in str(caught.value)


def test_the_parent_is_looked_for_beside_the_experiments_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "mine").mkdir()
    recipe = EXPERIMENTS.parent / "configs" / "pretrain.py"
    (tmp_path / "configs" / "own.py").write_text(recipe.read_text())
    text = '"""Why?"""\nfrom lepton_jax.sweeps import *\nPARENT = "configs/own.py:nano"\nMETRICS = "pretrain.loss"\n'
    (tmp_path / "mine" / "trial.py").write_text(text + variants("seeds(1)"))
    monkeypatch.chdir(tmp_path / "mine")
    found = sweeps.load("trial.py")
    assert found.recipe.resolve() == tmp_path / "configs" / "own.py" and found.path == Path("trial.py")
    assert found.argument == "nano" and found.metrics == ("pretrain.loss",)
    monkeypatch.chdir(tmp_path)
    assert sweeps.load("mine/trial.py").recipe == Path("configs/own.py")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        sweeps.load(tmp_path / "none.py")
    (tmp_path / "plain.py").write_text("PARENT = 'x'")
    with pytest.raises(UserError, match="has no docstring"):
        sweeps.load(tmp_path / "plain.py")
    for config in (AblateConfig(), SearchConfig()):
        with pytest.raises(UserError, match=r"config\.experiment='': name a file"):
            resolve(vars(config) | ({"slurm": {}} if isinstance(config, AblateConfig) else {}))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_experiment_resolves(path):
    found = sweeps.load(path)
    members = found.members()
    assert len(SHIPPED) >= 8 and found.description.count("How to read it:") == found.description.count("Cost:") == 1
    assert found.figures and (members or found.space)
    seeds = {}
    for member in members:
        seeds.setdefault(member.variant.name, []).append(member.seed)
    assert all(sorted(each) == [0, 1, 2] for each in seeds.values())
