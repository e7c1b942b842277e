"""Searches: what optuna is told, which trials are given up, and what is left when a command is stopped."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from lepton_jax import sweeps
from lepton_jax.config import SearchConfig
from lepton_jax.core.errors import UserError
from lepton_jax.sweeps import choice, integers, log_uniform, search, uniform
from lepton_jax.sweeps.crew import Outcome

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.once

SPACE = """
def space():
    return {"train.learning_rate": log_uniform(1e-4, 1e-1)}
"""
SMALL = {"model__num_layers": 1, "train__steps": 4, "evaluate__every": 2, "compress__method": "none"}


class Pretender:
    """A worker whose runs are over at once, with an accuracy of 1 minus the rate."""

    def __init__(self):
        self.job, self._reply, self.stopped, self.began = None, Outcome("done"), False, []
        self.pipe, self._other = multiprocessing.Pipe()

    def start(self, job, config, folder: Path, log: Path) -> None:
        self.job, self._reply = job, Outcome("done")
        self.began.append(config.train.learning_rate)
        folder.mkdir(parents=True, exist_ok=True)
        value = 1 - config.train.learning_rate
        lines = [{"step": step, "validation/accuracy": value} for step in (2, 4)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._other.send("over")

    def stop(self) -> None:
        self._reply = Outcome("stopped")

    def outcome(self) -> Outcome:
        self.pipe.recv()
        self.job = None
        return self._reply

    def close(self) -> None:
        pass


@pytest.fixture
def pretend(monkeypatch):
    workers = []

    def crew(config):
        workers.append(Pretender())
        return [workers[-1]]

    monkeypatch.setattr("lepton_jax.sweeps.searching.crew_of", crew)
    return workers


def test_hopeless_trials_are_given_up_and_the_best_one_is_named(experiment, tmp_path, pretend):
    file = experiment(SPACE, **SMALL)
    summary = search(SearchConfig(experiment=str(file), trials=12, startup=3), tmp_path / "search")
    rates = pretend[0].began
    assert summary["trials"] == len(rates) == 12 and 0 < summary["given_up"] < 9
    assert summary["best.accuracy"] == pytest.approx(1 - min(rates)) and summary["best.run"] in summary["best.command"]
    trials = optuna.load_study(study_name="search", storage=_storage(tmp_path / "search")).trials
    states = [trial.state.name for trial in trials]
    assert states.count("PRUNED") == summary["given_up"] and states.count("COMPLETE") == 12 - summary["given_up"]
    complete = [trial.params["train.learning_rate"] for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial.params["train.learning_rate"] for trial in trials if trial.state.name == "PRUNED"]
    assert min(pruned) > min(complete)

    again = search(SearchConfig(experiment=str(file), trials=14, startup=3), tmp_path / "search")
    assert again["trials"] == 14 and len(pretend[1].began) == 2 and not set(pretend[1].began) & set(rates)
    without = search(SearchConfig(experiment=str(file), trials=6, pruner="none"), tmp_path / "whole")
    assert without["given_up"] == 0 and without["trials"] == 6


def test_a_trial_that_was_cut_off_is_done_first(experiment, tmp_path, pretend):
    file, workdir = experiment(SPACE, **SMALL), tmp_path / "search"
    search(SearchConfig(experiment=str(file), trials=1), workdir)
    study = optuna.load_study(study_name="search", storage=_storage(workdir))
    cut = study.ask({"train.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
    search(SearchConfig(experiment=str(file), trials=2), workdir)
    assert pretend[1].began == [cut.params["train.learning_rate"]]


def test_a_search_really_runs(experiment, tmp_path):
    workdir = tmp_path / "search"
    summary = search(SearchConfig(experiment=str(experiment(SPACE, **SMALL)), trials=2), workdir)
    assert summary["trials"] == 2 and summary["failed"] == 0 and 0 <= summary["best.accuracy"] <= 1
    best = workdir / summary["best.run"]
    assert (best / "summary.json").exists() and (workdir / "report.html").exists()
    values = [json.loads(line) for line in (best / "metrics.jsonl").read_text().splitlines()]
    assert summary["best.accuracy"] == max(line.get("validation/accuracy", 0) for line in values)


def _storage(workdir: Path):
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(workdir / "search.log")))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def space():\n    return {'train.ratee': uniform(0, 1)}", r"config\.train\.ratee: unknown field"),
        ("def space():\n    return {'train.steps': uniform(1.0, 2.0)}", r"config\.train\.steps=.*must be of type int"),
        ("def space():\n    return {'train.steps': (1, 2)}", r"must be uniform, log_uniform, integers or choice"),
        ("def variants():\n    return seeds(1)", r"has no space\(\) to search"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_any_run(experiment, tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        search(SearchConfig(experiment=str(experiment(body))), tmp_path / "search")
    assert not list((tmp_path / "search").glob("*"))


def test_another_space_needs_another_folder(experiment, tmp_path, pretend):
    search(SearchConfig(experiment=str(experiment(SPACE, **SMALL)), trials=1), tmp_path / "search")
    other = experiment("def space():\n    return {'optim.beta1': uniform(0.5, 0.9)}", **SMALL)
    with pytest.raises(UserError, match=r"holds trials of a space over train\.learning_rate"):
        search(SearchConfig(experiment=str(other), trials=2), tmp_path / "search")


def test_ranges_say_what_is_wrong_with_them():
    for make in (lambda: uniform(1, 1), lambda: log_uniform(0, 1), lambda: integers(3, 2), lambda: choice()):
        with pytest.raises(UserError, match="must"):
            make()
    with pytest.raises(UserError, match="numbers, texts or truth values"):
        choice((1, 2))
    assert integers(1, 3).low == 1 and isinstance(integers(1, 3).low, int) and sweeps.choice("a").choices == ("a",)
