"""Early stopping: at the right step, at the same one after any interruption, with the best parameters."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lepton_jax import processes
from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import CheckpointConfig, Config, DataConfig, EvaluateConfig, TrainConfig
from lepton_jax.core import sharding
from lepton_jax.data.batches import training_batches
from lepton_jax.data.rows import Rows
from lepton_jax.train.logging import read_metrics
from lepton_jax.train.loop import fit
from lepton_jax.train.patience import Patience
from lepton_jax.train.step import make_program

pytestmark = pytest.mark.once

LOSSES = [5.0, 4.0, 6.0, math.nan, 3.0, 7.0, 7.0, 3.0, 2.0, 1.0]  # of steps 1, 2, ...; an equal one is no better
BEST, STOP, STEPS = 5, 8, 10  # with a patience of 3


class Killed(Exception):
    pass


class Run:
    """A run whose evaluations say what `LOSSES` says; which step parameters belong to, the first run notes."""

    known: dict[bytes, int] = {}  # noqa: RUF012
    programs: dict[Config, object] = {}  # noqa: RUF012

    def __init__(self, folder, setup, patience=3, **checkpoint):
        self.folder, self.setup = folder, setup
        self.config = Config(
            model=setup.config,
            data=DataConfig(max_length=12),
            train=TrainConfig(steps=STEPS, batch_size=8, learning_rate=0.01, log_every=1),
            checkpoint=CheckpointConfig(**{"every": 4, **checkpoint}),
            evaluate=EvaluateConfig(every=1, patience=patience),
        )

    def evaluate(self, params):
        step = self.known.setdefault(np.asarray(params["embeddings"]["token"]).tobytes(), len(self.known) + 1)
        return {"loss": LOSSES[step - 1], "accuracy": -LOSSES[step - 1]}

    def fit(self, **arguments):
        key = self.config.train
        setup = self.setup
        if key not in self.programs:
            self.programs[key] = make_program(self.config, setup.mesh, setup.task, setup.model)
        draw = np.random.default_rng(0)
        rows = [draw.integers(5, 64, 9).astype(np.int32) for _ in range(40)]
        labels = draw.integers(0, 3, 40).astype(np.int32)
        batches = training_batches(Rows(rows, labels), 8, 12, pack=False, pad_id=0, seed=0)
        try:
            return fit(
                self.config, self.folder, mesh=setup.mesh, task=setup.task, model=setup.model, batches=batches,
                evaluate=self.evaluate, program=self.programs[key], **arguments,
            )  # fmt: skip
        finally:
            batches.close()

    def lines(self):
        return read_metrics(self.folder, timed=False)

    def saved(self):
        return Checkpoints(self.folder / "checkpoints", self.config.checkpoint, read_only=True).steps()


@pytest.fixture(scope="module")
def straight(training, tmp_path_factory):
    """(A run that was not interrupted, what `fit` returned.)"""
    run = Run(tmp_path_factory.mktemp("patience") / "straight", training("classification"))
    return run, run.fit()


def text(lines):
    return [str(line) for line in lines]  # nan is not nan


def test_a_run_ends_when_its_patience_does_and_returns_the_best_parameters(straight):
    run, fitted = straight
    assert int(fitted.state.step) == STOP < STEPS and len(Run.known) == STOP
    validated = {line["step"]: line["validation/loss"] for line in run.lines() if "validation/loss" in line}
    assert [*validated] == [*range(1, STOP + 1)] and text(validated.values()) == text(LOSSES[:STOP])
    assert run.saved() == [BEST, STOP], "the best one is saved although it is no multiple of checkpoint.every"
    assert run.evaluate(fitted.params)["loss"] == LOSSES[BEST - 1] == min(LOSSES[:STOP])
    assert run.evaluate(fitted.state.params)["loss"] == LOSSES[STOP - 1]
    assert Run.known[np.asarray(fitted.state.params["embeddings"]["token"]).tobytes()] == STOP


def test_a_run_that_has_ended_does_not_train_on(straight, numbers, monkeypatch):
    run, fitted = straight
    before = text(run.lines())
    monkeypatch.setattr(sharding, "put_batch", lambda *_: pytest.fail("a batch"))
    again = run.fit()
    assert text(run.lines()) == before and run.saved() == [BEST, STOP]
    for part in ("params", "state"):
        one, other = (numbers(getattr(each, part)) for each in (fitted, again))
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_run_ends_at_the_same_step(straight, training, tmp_path, numbers, stop, capsys):
    run = Run(tmp_path / "run", training("classification"))
    half = run.fit(until=stop)
    assert int(half.state.step) == stop and "training ends here" not in capsys.readouterr().out
    fitted = run.fit()
    said = capsys.readouterr().out
    assert said.count(f"no better loss since step {BEST}, in 3 evaluations: training ends here") == 1
    assert text(run.lines()) == text(straight[0].lines()) and run.saved() == [BEST, STOP]
    for part in ("params", "state"):
        one, other = (numbers(getattr(each, part)) for each in (straight[1], fitted))
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("moment", ["before the save", "after it began"])
@pytest.mark.parametrize("killed", [BEST, 7, STOP])
def test_a_run_that_was_killed_around_an_evaluation_ends_at_the_same_step(
    straight, training, tmp_path, monkeypatch, killed, moment
):
    run, save, look = Run(tmp_path / "run", training("classification")), Checkpoints.save, Patience.look

    def dying_save(self, step, *arguments):
        if moment == "after it began":
            save(self, step, *arguments)
        if step == killed:
            raise Killed
        return None if moment == "after it began" else save(self, step, *arguments)

    def dying_look(self, step, metrics):
        saves = look(self, step, metrics)
        if step == killed and not saves:
            raise Killed
        return saves

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dying_save)
        patch.setattr(Patience, "look", dying_look)
        run.fit()
    assert run.lines()[-1]["step"] == killed and "validation/loss" in run.lines()[-1]
    run.fit()
    assert text(run.lines()) == text(straight[0].lines()) and run.saved() == [BEST, STOP]


def test_without_patience_a_run_goes_on_to_its_end(straight, training, tmp_path):
    run = Run(tmp_path / "run", training("classification"), patience=0)
    fitted = run.fit()
    assert int(fitted.state.step) == STEPS and run.saved() == [STEPS]
    assert text(run.lines())[: 2 * STOP] == text(straight[0].lines())


def write(folder, values, name="loss"):
    folder.mkdir(exist_ok=True)
    lines = [f'{{"step": {step}, "loss": 0.1}}\n' for step in (1, 2)]
    lines += [f'{{"step": {step}, "validation/{name}": {value}}}\n' for step, value in values.items()]
    (folder / "metrics.jsonl").write_text("".join(lines))


def patience(folder, step, name="loss", limit=2, values=None):
    write(folder, values or {}, name)
    config = Config(checkpoint=CheckpointConfig(best=name), evaluate=EvaluateConfig(patience=limit))
    return Patience(config, folder, step)


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [("loss", 1.0, 2.0), ("perplexity", 8.0, 9.0), ("mean_squared_error", 0.1, 0.2), ("mean_absolute_error", 0.1, 0.2),
     ("f1", 0.8, 0.7), ("mcc", 0.0, -0.1), ("spearman", -0.5, -0.6)],
)  # fmt: skip
def test_the_metric_says_what_is_better(tmp_path, name, better, worse):
    waits = patience(tmp_path, 0, name)
    values = [(worse, True), (better, True), (worse, False), (better, True)]  # the last one because it is over
    for step, (value, saves) in enumerate(values, start=1):
        assert waits.look(step, {name: value}) == saves and waits.is_over == (step == 4)
    assert waits.reason == f"no better {name} since step 2, in 2 evaluations: training ends here"
    assert patience(tmp_path, 3, name, values={1: better, 2: worse, 3: worse}).is_over
    assert not patience(tmp_path, 3, name, values={1: worse, 2: worse, 3: better}).is_over


def test_what_was_recorded_later_does_not_count(tmp_path):
    values = {10: 3.0, 20: 4.0, 30: 5.0, 40: 1.0}
    waits = [patience(tmp_path, step, values=values) for step in (10, 20, 30, 40)]
    assert [each.is_over for each in waits] == [False, False, True, False]
    waits[2].start(20)
    assert not waits[2].is_over and waits[2].look(30, {"loss": 5.0}) and waits[2].is_over


def test_what_is_no_number_is_never_better(tmp_path):
    waits = patience(tmp_path, 0)
    assert not waits.look(1, {"loss": math.nan}) and waits.look(2, {"loss": math.nan}) and waits.is_over
    assert waits.reason.startswith("no better loss at all")
    other = patience(tmp_path, 0, limit=0)
    assert not other.look(1, {"loss": math.nan}) and other.look(2, {"loss": 1e9}) and not other.is_over


def test_the_first_process_decides(tmp_path, monkeypatch):
    waits = patience(tmp_path, 0)
    assert waits.look(1, {"loss": 1.0})
    monkeypatch.setattr(processes, "on_first", lambda function: 0.5)  # what another process measured
    assert waits.look(2, {"loss": 2.0})
    monkeypatch.setattr(processes, "on_first", lambda function: 3.0)
    assert not waits.look(3, {"loss": 0.1})


def test_a_best_step_and_the_same_metric_in_a_checkpoint_agree(tmp_path, straight):
    run = straight[0]
    with Checkpoints(run.folder / "checkpoints", run.config.checkpoint, read_only=True) as checkpoints:
        assert checkpoints.best() == BEST
    turned = dataclasses.replace(run.config.checkpoint, best="accuracy")
    with Checkpoints(run.folder / "checkpoints", turned, read_only=True) as checkpoints:
        assert checkpoints.best() == BEST
