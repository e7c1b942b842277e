"""A search: values of fields that optuna chooses, by what the runs before came to on validation data.

An experiment's `space()` names fields as variants do, and for each where its values come from:

    def space():
        return {"train.learning_rate": log_uniform(1e-5, 1e-3), "train.batch_size": choice(16, 32)}

A trial is a run, in the folder of its hash, as a variant is. It is judged by the best `checkpoint.best` of its
evaluations, so that test data choose nothing; one that is behind at an evaluation is given up, with what it saved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_jax import report
from lepton_jax.config import LOWER_IS_BETTER, SearchConfig, runs
from lepton_jax.core.errors import UserError
from lepton_jax.results.differences import named
from lepton_jax.sweeps import experiment as experiments
from lepton_jax.sweeps.conduct import Summary, begin, crew_of, end, exclusive, stopping, write_failures
from lepton_jax.sweeps.crew import Worker, wait
from lepton_jax.sweeps.experiment import Experiment, Member
from lepton_jax.sweeps.progress import Board, Entry
from lepton_jax.sweeps.variants import Variant
from lepton_jax.train.logging import read_metrics

_LOOK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Values:
    """Where the values of a field come from: choices, or a range."""

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False


def uniform(low: float, high: float) -> Values:
    """Returns numbers of a range, all alike."""
    return _range(float(low), float(high), False)


def log_uniform(low: float, high: float) -> Values:
    """Returns numbers of a range, whose logarithms are alike."""
    return _range(float(low), float(high), True)


def integers(low: int, high: int, log: bool = False) -> Values:
    """Returns whole numbers of a range, both ends among them."""
    return _range(int(low), int(high), log)


def choice(*values: Any) -> Values:
    """Returns one of some numbers, texts or truth values."""
    if not values or not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise UserError(f"choice{values!r}: must have numbers, texts or truth values, one at least")
    return Values(choices=values)


def _range(low: float, high: float, log: bool) -> Values:
    if not low < high or (log and low <= 0):
        raise UserError(f"a range from {low} to {high}: must rise{', from above 0' if log else ''}")
    return Values(low=low, high=high, log=log)


def search(config: SearchConfig, workdir: str | Path) -> Summary:
    """Runs trials until there are as many as the config says, and writes their report; returns the best one.

    Raises:
      UserError: the experiment is wrong in itself, or optuna is not there.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("config.stage='search': needs optuna; pip install 'lepton_jax[experiments]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir, found = Path(workdir), experiments.load(config.experiment)
    space = _distributions(found)
    name = runs(found.member(Variant()).config)[-1][1].checkpoint.metric
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=config.startup, n_warmup_steps=0),
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }
    with exclusive(workdir):
        backend = JournalFileBackend(str(workdir / "search.log"))
        study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="search",
            direction="minimize" if name in LOWER_IS_BETTER else "maximize",
            load_if_exists=True,
            pruner=pruners[config.pruner],
        )
        _require_same_space(study, space, workdir)
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a command that was stopped
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
        trials = _Trials(study, space, found, workdir, name)
        trials.run(config, crew_of(config))
        page = report.write_sweep(workdir)
    return trials.summary() | {"report": str(page)}


class _Trials:
    """The trials of a study in a folder, those of earlier commands too."""

    def __init__(self, study: Any, space: Mapping[str, Any], experiment: Experiment, workdir: Path, name: str):
        self._study, self._space, self._experiment, self._workdir, self._name = study, space, experiment, workdir, name
        self._entries: dict[int, Entry] = {}  # number of the trial -> its run
        self._told: dict[int, set[int]] = {}  # ... -> the steps whose evaluations optuna knows
        for trial in study.trials:
            if trial.state.name in ("COMPLETE", "PRUNED"):
                entry = self._enter(trial.number, trial.params)
                entry.state, entry.value = "done" if trial.state.name == "COMPLETE" else "given up", trial.value

    def run(self, config: SearchConfig, workers: list[Worker]) -> None:
        """Runs trials until there are `config.trials` that ended well or were given up."""
        import optuna

        pruned: set[int] = set()
        entries: list[Entry] = list(self._entries.values())
        with stopping() as asked, Board(entries, self._name, self._experiment.title) as board:
            try:
                while True:
                    busy = [worker for worker in workers if worker.job is not None]
                    ended = sum(entry.state in ("done", "given up", "failed") for entry in entries)
                    if asked():
                        for worker in busy:
                            worker.stop()
                    if not busy and (asked() or ended >= config.trials):
                        break
                    for worker in workers:
                        if worker.job is None and not asked() and ended + len(busy) < config.trials:
                            trial = self._study.ask(self._space)
                            entry = self._enter(trial.number, trial.params)
                            entries.append(entry)
                            self._write_plan()
                            begin(worker, entry, self._workdir)
                            worker.job = (trial, entry)
                            busy.append(worker)
                    for worker in busy:
                        trial, entry = worker.job
                        if trial.number not in pruned and self._behind(trial, entry):
                            pruned.add(trial.number)
                            worker.stop()
                    for worker in wait(workers, _LOOK_SECONDS):
                        trial, entry = worker.job
                        end(entry, worker.outcome(), "")
                        self._behind(trial, entry)
                        if entry.state == "done":
                            entry.value = self._value(entry)
                            failed = entry.value is None
                            state = optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE
                            self._study.tell(trial, entry.value, state=state)
                        elif entry.state == "failed":
                            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                        elif trial.number in pruned:
                            entry.state, entry.value = "given up", self._value(entry)
                            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    board.show()
            finally:
                for worker in workers:
                    worker.close()
        write_failures(self._workdir, entries)

    def summary(self) -> Summary:
        """Returns the best trial, and how many there are."""
        entries = list(self._entries.values())
        done = [entry for entry in entries if entry.state == "done" and entry.value is not None]
        summary: Summary = {"trials": len(entries), "given_up": sum(each.state == "given up" for each in entries)}
        summary["failed"] = sum(each.state == "failed" for each in entries)
        if done:
            sign = 1 if self._name in LOWER_IS_BETTER else -1
            best = min(done, key=lambda entry: sign * (entry.value or 0.0))
            summary |= {f"best.{self._name}": best.value, "best.run": best.member.hash}
            summary["best.command"] = self._experiment.command(best.member, self._workdir)
        return summary

    def _enter(self, number: int, params: Mapping[str, Any]) -> Entry:
        text = ", ".join(
            named(path, float(f"{value:.3g}") if isinstance(value, float) else value) for path, value in params.items()
        )
        member = self._experiment.member(Variant(dict(params), text))
        self._entries[number] = Entry(member, self._workdir / member.hash)
        return self._entries[number]

    def _write_plan(self) -> None:
        members: dict[str, Member] = {entry.member.hash: entry.member for entry in self._entries.values()}
        experiments.write_plan(self._workdir, self._experiment, members.values())

    def _evaluations(self, entry: Entry) -> list[tuple[int, float]]:
        """Returns (step, value) of what a run has measured on validation data, of a chain its last part."""
        part = entry.folder / "finetune" if len(runs(entry.member.config)) > 1 else entry.folder
        try:
            lines = read_metrics(part)
        except UserError:  # it is being written anew
            return []
        name = f"validation/{self._name}"
        return [(line["step"], line[name]) for line in lines if name in line and math.isfinite(line[name])]

    def _value(self, entry: Entry) -> float | None:
        best = min if self._name in LOWER_IS_BETTER else max
        return best((value for _, value in self._evaluations(entry)), default=None)

    def _behind(self, trial: Any, entry: Entry) -> bool:
        """Tells optuna what is new of a run; returns whether it is to be given up."""
        behind = False
        told = self._told.setdefault(trial.number, set())
        for step, value in self._evaluations(entry):
            if step not in told:
                told.add(step)
                trial.report(value, step)
                behind |= trial.should_prune()
        return behind


def _distributions(experiment: Experiment) -> dict[str, Any]:
    """Returns the space of an experiment as optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = {}
    for path, values in experiment.space.items():
        if not isinstance(values, Values):
            raise UserError(
                f"{experiment.path}: space()[{path!r}]={values!r}: must be uniform, log_uniform, integers or choice"
            )
        kind = IntDistribution if isinstance(values.low, int) else FloatDistribution
        space[path] = (
            CategoricalDistribution(values.choices) if values.choices else kind(values.low, values.high, log=values.log)  # type: ignore[arg-type]
        )
        first = values.choices[0] if values.choices else values.low
        experiment.member(Variant({path: first}, "of space()"))  # an unknown field, or a type that it does not take
    if not space:
        raise UserError(f"{experiment.path}: has no space() to search; variants are for --config=configs/ablate.py")
    return space


def _require_same_space(study: Any, space: Mapping[str, Any], workdir: Path) -> None:
    """Raises where a folder holds trials of another space, which would be no help to this one."""
    for trial in study.trials:
        if trial.distributions and dict(trial.distributions) != dict(space):
            raise UserError(
                f"{workdir}: holds trials of a space over {', '.join(trial.distributions)}; choose another workdir"
            )
