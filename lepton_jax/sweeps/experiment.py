"""An experiment: a file with a question, the config that it starts from, and variants or a space to search.

    \"\"\"How much of the text should be masked?        the question; below it cost, and how to read the result
    \"\"\"
    PARENT = "configs/pretrain.py:tiny"               a recipe, with its argument
    ALIKE = {"train.steps": 500}                      in which all its runs differ from that; may be left out
    METRICS = ("pretrain.validation_loss",)           of summary.json, which the report is about; the main one first
    FIGURES = (Curves("validation/loss"),)            of `lepton_jax.results.figures`; may be left out

    def variants():                                   differences from the parent, see `sweeps.variants`
        return product(vary("task.mask_rate", 0.15, 0.3), seeds(3))

    def space():                                      of a search, see `sweeps.searching`
        return {"train.learning_rate": log_uniform(1e-4, 1e-2)}

The file is Python and is run, as a recipe is: take it from nobody whom you would not let run a program.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lepton_jax.config import resolve, runs
from lepton_jax.core.errors import UserError, nearest
from lepton_jax.overrides import explain_override
from lepton_jax.results import figures
from lepton_jax.sweeps.variants import SEED, Variant
from lepton_jax.workdir import identity, write_json


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of an experiment."""

    variant: Variant
    config: Any  # resolved
    seed: int

    @property
    def hash(self) -> str:
        """The name of its folder: what the config comes to, however it was written."""
        return identity(self.config)

    @property
    def label(self) -> str:
        """Its name and seed, for people."""
        return f"{self.variant.name or 'parent'}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a file of `experiments/` says, read and found consistent as far as that needs no run."""

    path: Path
    title: str
    description: str
    parent: str  # as the file names it
    recipe: Path
    argument: str
    metrics: tuple[str, ...]
    figures: tuple[Any, ...]
    base: ConfigDict  # the parent
    alike: Mapping[str, Any]
    variants: tuple[Variant, ...]
    space: Mapping[str, Any]

    def member(self, variant: Variant) -> Member:
        """Returns the run of a variant.

        Raises:
          UserError: it names a field that the parent does not have, or a value that the field does not take.
        """
        config = copy.deepcopy(self.base)  # with its references: what a recipe ties together stays so
        try:
            for path, value in self._changes(variant).items():
                _set(config, path, value)
            config = resolve(config)
        except UserError as error:
            raise UserError(f"{self.path}: variant {variant.name or 'parent'!r}: {error}") from None
        trainings = runs(config)
        if not trainings:
            raise UserError(f"{self.path}: PARENT={self.parent!r}: trains nothing; name a recipe that does")
        return Member(variant, config, trainings[0][1].train.seed)

    def members(self) -> list[Member]:
        """Returns the runs of all variants, in their order.

        Raises:
          UserError: of `member`; two variants come to the same config; or two of one name and seed do not.
        """
        found: dict[str, Member] = {}
        named: dict[str, Member] = {}
        for variant in self.variants:
            member = self.member(variant)
            if other := found.get(member.hash):
                raise UserError(
                    f"{self.path}: {other.label!r} and {member.label!r} are the same config ({member.hash}); leave one "
                    f"out, or let them differ"
                )
            if other := named.get(member.label):
                raise UserError(
                    f"{self.path}: two variants are {member.label!r}, with other values of "
                    f"{', '.join(sorted({*other.variant.changes, *member.variant.changes} - {SEED}))}; name them by "
                    f"case(NAME, ...), for runs of one name are put together over their seeds"
                )
            found[member.hash] = named[member.label] = member
        return list(found.values())

    def command(self, member: Member, workdir: Path) -> str:
        """Returns the plain command of a run, which needs nothing of this part of the package."""
        changes = self._changes(member.variant)
        recipe = f"{self.recipe}:{self.argument}" if self.argument else str(self.recipe)
        words = [f"--config={recipe}", f"--workdir={workdir / member.hash}"]
        words += [f"--config.{path}={value}" for path, value in changes.items()]
        return shlex.join(["python", "-m", "lepton_jax.main", *words])

    def _changes(self, variant: Variant) -> dict[str, Any]:
        """Returns all in which a run differs from the parent, with SEED as the fields that it stands for."""
        sections = [name for name, value in self.base.items() if isinstance(value, ConfigDict) and "train" in value]
        seeds = ["train.seed"] if "train" in self.base else [f"{name}.train.seed" for name in sections]
        changes: dict[str, Any] = {}
        for path, value in {**self.alike, **variant.changes}.items():
            changes |= dict.fromkeys(seeds, value) if path == SEED else {path: value}
        return changes


def load(path: str | Path) -> Experiment:
    """Returns the experiment in a file.

    Raises:
      UserError: there is no such file, it fails, or it lacks something; the message names it.
    """
    path = _near(Path(path).absolute())
    module = _module(path)
    title, _, description = (module.__doc__ or "").strip().partition("\n")
    if not title:
        raise UserError(f"{path}: has no docstring; its first line is the question")
    for name in ("PARENT", "METRICS"):
        if not hasattr(module, name):
            raise UserError(f"{path}: has no {name}; see lepton_jax/sweeps/experiment.py")
    if not hasattr(module, "variants") and not hasattr(module, "space"):
        raise UserError(f"{path}: has neither variants() nor space(); see lepton_jax/sweeps/experiment.py")
    metrics = (module.METRICS,) if isinstance(module.METRICS, str) else tuple(module.METRICS)
    if not metrics or not all(isinstance(name, str) for name in metrics):
        raise UserError(f"{path}: METRICS={metrics!r}: must be names of summary.json, one at least")
    recipe, _, argument = str(module.PARENT).partition(":")
    beside = path.absolute().parent.parent / recipe
    where = next((_near(each) for each in (beside, Path(recipe).absolute()) if each.is_file()), None)
    if where is None:
        raise UserError(f"{path}: PARENT={module.PARENT!r}: no such file beside {path.parent} nor here")
    base = _module(where).get_config(*filter(None, [argument]))
    variants = tuple(module.variants()) if hasattr(module, "variants") else ()
    for variant in variants:
        if not isinstance(variant, Variant):
            raise UserError(f"{path}: variants() holds {variant!r}; must hold what vary, case, seeds and the like give")
    space = module.space() if hasattr(module, "space") else {}
    return Experiment(
        path, title, description.strip(), str(module.PARENT), where, argument, metrics,
        tuple(getattr(module, "FIGURES", ())), base, getattr(module, "ALIKE", {}), variants, space,
    )  # fmt: skip


def write_plan(workdir: Path, experiment: Experiment, members: Iterable[Member]) -> None:
    """Writes `workdir/plan.json`: what the report needs of an experiment besides the folders of its runs."""
    variants = [
        {
            "name": each.variant.name or "parent",
            "seed": each.seed,
            "hash": each.hash,
            "changes": dict(each.variant.changes),
            "command": experiment.command(each, workdir),
        }
        for each in members
    ]
    plan = {
        "experiment": str(experiment.path),
        "title": experiment.title,
        "description": experiment.description,
        "parent": experiment.parent,
        "alike": dict(experiment.alike),
        "metrics": list(experiment.metrics),
        "figures": figures.to_json(experiment.figures),
        "variants": variants,
    }
    write_json(workdir / "plan.json", plan)


def _near(path: Path) -> Path:
    """Returns an absolute path as it is called from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _module(path: Path) -> Any:
    """Returns a Python file as a module."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name one such as experiments/mask_rate.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error
    return module


def _set(config: ConfigDict, path: str, value: Any) -> None:
    """Sets a field of a config that has it."""
    *sections, field = path.split(".")
    where = "config"
    for name in sections:
        config, where = _field(config, name, where), f"{where}.{name}"
    if isinstance(before := _field(config, field, where), ConfigDict):
        raise UserError(f"config.{path}={value!r}: is a section; set one of its fields: {', '.join(before)}")
    try:
        config[field] = value
    except (TypeError, ValueError):
        raise UserError(explain_override(path, str(value))) from None


def _field(config: Any, name: str, where: str) -> Any:
    if not isinstance(config, ConfigDict):
        raise UserError(f"{where}: is no section, and has no {name!r}")
    if name not in config:
        raise UserError(f"{where}.{name}: unknown field; {nearest(name, list(config))}")
    return config[name]
