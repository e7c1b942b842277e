"""Finished and unfinished runs as values: found in their folders, and as rows of a table.

    runs = results.find("runs/mask_rate")                          # a sweep, a run, a folder of runs, or a glob
    table = results.frame("runs/*", where={"task.name": "classification"})   # a pandas.DataFrame, a row a run

The table alone needs pandas.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lepton_jax.core.errors import UserError, nearest
from lepton_jax.results.differences import differing, named
from lepton_jax.workdir import flatten, read_json

_TRAININGS = ("pretrain", "finetune", "quickstart")  # the stages whose folders are runs
_MOST, _LONGEST = 3, 60  # fields and characters of a name of what differs; if there are more, a run has its folder's


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: what its folder holds."""

    folder: Path
    name: str  # of all runs that are the same but for the seed
    seed: int
    hash: str = ""  # in a sweep, the name of its folder
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # path of a field -> value, as it was recorded
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # dotted name -> number, text or None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # versions, git_revision, command, starts
    state: Literal["complete", "unfinished"] = "unfinished"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # in a sweep: from its parent
    failure: str = ""  # in a sweep: why it failed, if it did

    @property
    def devices(self) -> str:
        """Where it computed last, such as "8 x TPU v5e (tpu)"."""
        starts = self.record.get("starts") or [{}]
        found = starts[-1].get("devices")
        return f"{found['count']} x {found['kind']} ({found['platform']})" if found else "unknown"

    def value(self, name: str) -> Any:
        """Returns a metric of the summary or a field of the config; of "a*b", their product.

        Raises:
          UserError: the run has neither; the message names what it has.
        """
        if "*" in name:
            return math.prod(self.number(part.strip()) for part in name.split("*"))
        for source in (self.summary, self.config):
            if name in source:
                return source[name]
        if name in ("name", "seed", "state"):
            return getattr(self, name)
        if "." in name and name.rpartition(".")[0] in {path.rpartition(".")[0] for path in self.config}:
            raise UserError(f"{self.folder}: has no field {name!r}; {nearest(name, list(self.config))}")
        raise UserError(f"{self.folder}: has no metric {name!r}; it has {', '.join(self.metrics()) or 'none'}")

    def number(self, name: str) -> float:
        """Returns a metric or field as a number; NaN of one that a run does not define.

        Raises:
          UserError: the run does not have it, or it is no number.
        """
        found = self.value(name)
        if found is None:
            return math.nan
        if isinstance(found, (int, float)):
            return float(found)
        raise UserError(f"{self.folder}: {name}={found!r} is no number")

    def metrics(self) -> list[str]:
        """Returns the names of what it measured: single numbers, but for counts of the data."""
        return [
            name for name, value in self.summary.items()
            if isinstance(value, (int, float)) and not re.match(r"\w+\.data\.", name)
        ]  # fmt: skip

    def predictions(self, metric: str) -> Path:
        """Returns the file with the predictions that a metric is of; of a quickstart, those of its fine-tuning."""
        chained = self.config.get("stage") == "quickstart"
        folder = self.folder / "finetune" if chained else self.folder
        return (folder / "int8" if metric.startswith("int8.") else folder) / "predictions.jsonl"


def find(*paths: str | Path) -> list[Run]:
    """Returns the runs in folders, in their order and each once.

    A folder is a run's, a sweep's (with a plan.json, which then has names and seeds), or holds some of these; globs are
    resolved. A fine-tuning over several seeds is one run a seed. Runs without a plan are named by the fields in which
    they differ, or by their folders where these are more than three. A run that is not complete, whatever of its files
    is there or damaged, is "unfinished".

    Raises:
      UserError: a path does not exist, or is no run and holds none.
    """
    if not paths:
        raise UserError("no folder to look for runs in; name one, such as runs/quickstart")
    planned: list[Run] = []
    others: list[Run] = []
    for path in map(str, paths):
        for folder in _folders(path):
            if (folder / "plan.json").exists():
                planned += _planned(folder)
            else:
                others += _seeds(folder)
    found = {(run.folder.resolve(), run.name): run for run in (*planned, *_with_names(others))}
    return list(found.values())


def frame(*paths: str | Path, where: Mapping[str, Any] | None = None) -> Any:
    """Returns the runs in folders as a pandas.DataFrame, a row a run.

    Columns: name, seed, state, hash, folder; the fields of the config by their paths; the metrics of the summary by
    their names, `wall_seconds` among them; and git_revision, devices, command, versions.NAME. What a run does not have
    is missing.

    Args:
      paths: see `find`.
      where: only rows with these values, column -> value.

    Raises:
      UserError: of `find`; no run has such a column; or pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("tables of runs need pandas: pip install 'lepton_jax[experiments]'") from None
    table: Any = pandas.DataFrame([_row(run) for run in find(*paths)])
    for name, value in (where or {}).items():
        if name not in table:
            raise UserError(f"where={name!r}: no run has it; {nearest(name, list(map(str, table.columns)))}")
        table = table[[each == value for each in table[name]]]
    return table.reset_index(drop=True)


def _row(run: Run) -> dict[str, Any]:
    start = {"name": run.name, "seed": run.seed, "state": run.state, "hash": run.hash, "folder": str(run.folder)}
    versions = {f"versions.{name}": version for name, version in (run.record.get("versions") or {}).items()}
    end = {"git_revision": run.record.get("git_revision"), "devices": run.devices,
           "command": " ".join(run.record.get("command", ()))}  # fmt: skip
    return start | dict(run.config) | dict(run.summary) | end | versions


def _folders(path: str) -> list[Path]:
    """Returns the folders of runs and sweeps that a path names."""
    given = Path(path).expanduser()
    if glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(given)))]
        found = [folder for match in matches if match.is_dir() for folder in _within(match)]
        if not found:
            raise UserError(f"{path}: matches no folder of a run")
        return found
    if not given.is_dir():
        raise UserError(f"{path}: {'no folder' if given.exists() else 'no such folder'}; name the folder of a run")
    found = list(_within(given))
    if not found:
        stage = _config(given).get("stage")
        if stage is not None:
            raise UserError(f"{path}: is a {stage!r}, not a training; name the folder of a run")
        raise UserError(f"{path}: is no run, for it has no config.json, and holds none; name the folder of a run")
    return found


def _within(folder: Path) -> Iterator[Path]:
    """Gives the folder itself if it is a run or a sweep, else those in it."""
    if (folder / "plan.json").exists() or (folder / "config.json").exists():
        candidates: Iterable[Path] = (folder,)
    else:
        candidates = sorted(each for each in folder.iterdir() if each.is_dir())
    for each in candidates:
        if (each / "plan.json").exists() or (
            (each / "config.json").exists() and _config(each).get("stage", _TRAININGS[0]) in _TRAININGS
        ):
            yield each


def _planned(workdir: Path) -> list[Run]:
    """Returns the runs of a sweep, as its plan names them."""
    plan = read_plan(workdir)
    failures = _intact(workdir / "failures.json")
    found = []
    for each in plan["variants"]:
        folder = workdir / each["hash"]
        failure = str(failures.get(each["hash"], ""))
        if (folder / "failure.txt").is_file():
            failure = (folder / "failure.txt").read_text(encoding="utf-8", errors="replace").strip() or "failed"
        runs = _seeds(folder)
        for run in runs:
            seed = run.seed if len(runs) > 1 else int(each["seed"])
            failed = failure if run.state != "complete" else ""
            changes = each.get("changes", {})
            found.append(dataclasses.replace(
                run, name=each["name"], seed=seed, hash=each["hash"], changes=changes, failure=failed
            ))  # fmt: skip
    return found


def read_plan(workdir: Path) -> dict[str, Any]:
    """Returns the plan of a sweep.

    Raises:
      UserError: there is none, or it is damaged.
    """
    plan = read_json(workdir / "plan.json")
    variants = plan.get("variants") if isinstance(plan, dict) else None
    if not isinstance(variants, list) or not all(
        isinstance(each, dict) and {"name", "seed", "hash"} <= set(each) for each in variants
    ):
        raise UserError(f"{workdir / 'plan.json'}: must list variants, each with name, seed and hash")
    return plan


def _seeds(folder: Path) -> list[Run]:
    """Returns a run, or each of its seeds."""
    run = _run(folder)
    count, first = run.config.get("train.seeds", 1), run.config.get("train.seed", 0)
    if run.config.get("stage") != "finetune" or not isinstance(count, int) or count < 2:
        return [run]
    found = []
    for seed in range(first, first + count):
        each = _run(folder / f"seed_{seed}")
        config = each.config or {**run.config, "train.seed": seed, "train.seeds": 1}
        found.append(dataclasses.replace(each, config=config, record=each.record or run.record, seed=seed))
    return found


def _run(folder: Path) -> Run:
    """Returns what a folder holds of a run, which may be nothing."""
    record = _intact(folder / "config.json")
    config = flatten(record.get("config", {}) if isinstance(record.get("config"), dict) else {})
    tree = _intact(folder / "summary.json")
    kinds = (int, float, str, type(None))
    summary = {name: value for name, value in flatten(tree).items() if isinstance(value, kinds)}
    seed = next((config[name] for name in ("train.seed", "pretrain.train.seed") if name in config), 0)
    rest = {name: value for name, value in record.items() if name != "config"}
    state = "complete" if config and summary else "unfinished"
    return Run(folder, folder.name, seed, "", config, summary, rest, state)


def _intact(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one where there is none, or half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    found = _intact(folder / "config.json").get("config")
    return found if isinstance(found, dict) else {}


def _with_names(runs: Sequence[Run]) -> list[Run]:
    """Returns runs with the names of what differs among them; those that differ by their seeds alone share one."""
    fields = differing([run.config for run in runs if run.config])
    values = iter(zip(*fields.values(), strict=True) if fields else ())
    # A config that cannot be read tells nothing: such a run has the name of its folder.
    kinds = [next(values, ()) if run.config else run.folder.name for run in runs]
    names: dict[str, str] = {}
    for kind in kinds:
        alike = [run for run, other in zip(runs, kinds, strict=True) if other == kind]
        if not alike[0].config:
            name = alike[0].folder.name
        elif not fields:
            name = alike[0].config.get("stage", alike[0].folder.name)
        elif len(fields) <= _MOST and len(name := ", ".join(map(named, fields, kind))) <= _LONGEST:
            pass
        else:
            name = _folder_name(
                [run.folder for run in alike], [other for key, other in names.items() if key != repr(kind)]
            )
        names[repr(kind)] = name
    return [dataclasses.replace(run, name=names[repr(kind)]) for run, kind in zip(runs, kinds, strict=True)]


def _folder_name(folders: Sequence[Path], taken: Sequence[str]) -> str:
    """Returns what the folders of a run's seeds have in common: "movie" of movie/seed_0, and of movie_0 and movie_1."""
    own = [folder.parent if re.fullmatch(r"seed_\d+", folder.name) else folder for folder in folders]
    names = {folder.name for folder in own}
    name = names.pop() if len(names) == 1 else _start_of(sorted(names)).rstrip("_-. ")
    return name if name and name not in taken else str(own[0])


def _start_of(names: Sequence[str]) -> str:
    """Returns what names begin with, all of them."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)
