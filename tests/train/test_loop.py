"""The loop on real batches: resumed equals uninterrupted, what is logged when, and the best parameters."""

import dataclasses
import functools
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
)
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.data.batches import evaluation_batches, training_batches
from lepton_jax.data.rows import Rows, encode_examples
from lepton_jax.data.shards import encode_documents
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import make_task
from lepton_jax.train.evaluate import make_evaluate
from lepton_jax.train.logging import read_metrics
from lepton_jax.train.loop import check_attention, check_mesh, fit
from lepton_jax.train.ramp import part_rows
from lepton_jax.train.step import make_program
from lepton_jax.train.stopping import Stopped, watch_sigterm

LENGTH, BATCH = 12, 8


@pytest.fixture(scope="module")
def tokenizer(corpus, cache):
    return tokenizers.train((corpus / "text.txt").read_text().split("\n\n"), size=400, cache=cache)


@pytest.fixture(scope="module")
def examples(corpus):
    """Returns (texts, labels 0 and 1)."""
    lines = [json.loads(line) for line in (corpus / "labelled.jsonl").read_text().splitlines()]
    return [line["text"] for line in lines], np.array([line["label"] == "good" for line in lines], np.int32)


# Runs that are set up alike share what is compiled, as those of several seeds do.
program = functools.cache(make_program)
evaluator = functools.cache(make_evaluate)


class Run:
    """A run as a stage would set it up; `fit` may be called again and again, each time with new iterators."""

    def __init__(self, folder, model, tokenizer, texts, labels=None, validation_labels=None, **sections):
        task = TaskConfig(name="masked_lm" if labels is None else "classification", mask_rate=0.3)
        sections = {
            "train": TrainConfig(steps=4, batch_size=BATCH, learning_rate=0.01, log_every=1),
            "data": DataConfig(max_length=LENGTH),
            "optim": OptimConfig(warmup_steps=1),
            "checkpoint": CheckpointConfig(every=2, keep=3),
            "evaluate": EvaluateConfig(every=2, batch_size=BATCH),
            **sections,
        }
        self.folder, self.config = folder, Config(model=model, task=task, **sections)
        self.task, self.mesh = (
            make_task(task, tokenizer, packed=labels is None, labels=("bad", "good")),
            sharding.make_mesh("data=4,fsdp=2"),
        )
        self.model = Transformer(model, self.task.head, self.task.num_outputs)
        encode = encode_documents if labels is None else encode_examples
        extra = [str(folder.parent / "cache")] if labels is None else []
        rows = encode(tokenizer, texts, LENGTH, *extra)
        self.rows, self.held_out = rows[20:], rows[:20]
        self.common = {"max_length": LENGTH, "pack": labels is None, "pad_id": tokenizer.pad_id}
        self.labels = None if labels is None else labels[20:]
        held_out_labels = labels if validation_labels is None else validation_labels
        self.held_out_labels = None if labels is None else held_out_labels[:20]

    def training(self):
        return training_batches(Rows(self.rows, self.labels), part_rows(self.config.train), seed=0, **self.common)

    def validation(self):
        return evaluation_batches(Rows(self.held_out, self.held_out_labels), BATCH, **self.common)

    def fit(self, **arguments):
        batches, means = self.training(), evaluator(self.task, self.model, self.mesh)
        try:
            return fit(
                self.config, self.folder, mesh=self.mesh, task=self.task, model=self.model, batches=batches,
                evaluate=lambda params: means(params, self.validation()),
                program=program(self.config, self.mesh, self.task, self.model), **arguments,
            )  # fmt: skip
        finally:
            batches.close()

    def lines(self):
        return read_metrics(self.folder, timed=False)


@pytest.fixture
def make_run(training, tokenizer, examples, tmp_path):
    def make(name, **arguments):
        model = dataclasses.replace(training().config, vocab_size=448, dropout=arguments.pop("dropout", 0.0))
        return Run(tmp_path / name, model, tokenizer, examples[0], **arguments)

    return make


@pytest.fixture
def seen(monkeypatch):
    """Every batch that was put on the devices, of training and evaluation."""
    found, put = [], sharding.put_batch

    def record(batch, mesh):
        found.append({name: value.copy() for name, value in batch.items()})
        return put(batch, mesh)

    monkeypatch.setattr(sharding, "put_batch", record)
    return found


@pytest.mark.parametrize(
    "kind", ["packed masked LM", pytest.param("accumulated classification", marks=pytest.mark.once)]
)
def test_two_and_two_steps_equal_four_bit_for_bit(make_run, examples, numbers, seen, kind):
    settings = {"packed masked LM": {"dropout": 0.1}, "accumulated classification": {
        "labels": examples[1], "dropout": 0.1,
        "train": TrainConfig(steps=4, batch_size=2 * BATCH, learning_rate=0.01, log_every=1, accumulate=2),
    }}[kind]  # fmt: skip
    whole, halves = make_run("whole", **settings), make_run("halves", **settings)
    wanted = whole.fit()
    straight = [*seen]
    seen.clear()
    half = halves.fit(until=2)
    assert int(half.state.step) == 2 and int(wanted.state.step) == 4
    at_two = numbers(half.state)
    assert halves.lines() != whole.lines() and halves.lines() == whole.lines()[: len(halves.lines())]
    found = halves.fit()
    assert int(found.state.step) == 4

    # Mid-epoch: batches of other rows still lie ahead; and the four differ.
    held_out = {batch["token_ids"].tobytes() for batch in whole.validation()}
    trained = [batch for batch in straight if batch["token_ids"].tobytes() not in held_out]
    tokens = sum(int((batch["attention_mask"] > 0).sum()) for batch in trained)
    assert len(trained) == 4 and tokens < sum(map(len, whole.rows))
    assert len({batch["token_ids"].tobytes() for batch in trained}) == 4
    if kind == "packed masked LM":
        assert trained[2]["attention_mask"].max() > 1
    assert len(straight) == len(seen)
    for one, other in zip(straight, seen, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)

    four, resumed = numbers(wanted.state), numbers(found.state)
    assert all((at_two[path] != four[path]).any() for path in four if path.startswith("params/layers/")), "2 is not 4"
    assert {path.split("/")[0] for path in four} == {"step", "skipped", "params", "opt_state", "rng"}
    assert four.keys() == resumed.keys()
    for path, value in four.items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    for path, value in numbers(wanted.params).items():
        np.testing.assert_array_equal(value, numbers(found.params)[path], err_msg=path)
    assert halves.lines() == whole.lines()
    assert [line["step"] for line in whole.lines()] == [1, 2, 2, 3, 4, 4]

    seen.clear()
    again = halves.fit()
    assert not seen and halves.lines() == whole.lines(), "a finished run is not trained again"
    for path, value in numbers(again.state).items():
        np.testing.assert_array_equal(value, four[path], err_msg=path)


@pytest.mark.once
def test_a_growing_batch_takes_all_rows_in_turn_and_resumes_bit_for_bit(make_run, numbers, seen):
    train = TrainConfig(steps=3, batch_size=4 * BATCH, learning_rate=0.01, log_every=1, ramp_share=0.67)
    settings = {"train": train, "checkpoint": CheckpointConfig(every=2), "evaluate": EvaluateConfig(2, BATCH)}
    whole, halves = make_run("whole", **settings), make_run("halves", **settings)
    wanted, held_out = numbers(whole.fit().state), len(list(whole.validation()))
    trained = [*seen[:2], seen[2 + held_out]]
    assert len(seen) == 3 + 2 * held_out
    assert [len(batch["weight"]) for batch in trained] == [8, 16, 32]
    parts = whole.training()  # the batches are these, joined: none is left out
    rows = np.concatenate([next(parts)["token_ids"] for _ in range(7)])
    parts.close()
    np.testing.assert_array_equal(np.concatenate([batch["token_ids"] for batch in trained]), rows)
    weights = [line["weight"] for line in whole.lines() if "weight" in line]
    assert weights[0] < 0.6 * weights[1] < 0.4 * weights[2]

    halves.fit(until=2)
    found = numbers(halves.fit().state)
    assert halves.lines() == whole.lines()
    for path, value in wanted.items():
        np.testing.assert_array_equal(value, found[path], err_msg=path)


@pytest.mark.once
def test_sigterm_saves_the_step_under_way_and_the_run_goes_on_bit_for_bit(make_run, numbers, seen, monkeypatch):
    whole, stopped = make_run("whole", dropout=0.1), make_run("stopped", dropout=0.1)
    wanted = whole.fit()
    before, put, calls = signal.getsignal(signal.SIGTERM), sharding.put_batch, []

    def terminate(batch, mesh):
        calls.append(batch)
        if len(calls) == 3 + len(list(stopped.validation())):  # step 3, after the evaluation of step 2
            os.kill(os.getpid(), signal.SIGTERM)
        return put(batch, mesh)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"3 of 4 steps are done and saved; the same"):
        patch.setattr(sharding, "put_batch", terminate)
        stopped.fit()
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(stopped.folder / "checkpoints", stopped.config.checkpoint) as checkpoints:
        assert checkpoints.latest() == 3
    assert stopped.lines() == whole.lines()[:-2]
    found = stopped.fit()
    assert stopped.lines() == whole.lines()
    for path, value in numbers(wanted.state).items():
        np.testing.assert_array_equal(value, numbers(found.state)[path], err_msg=path)


def poison(monkeypatch, steps):
    """Makes the training batches of the given numbers, counted from 1 as they come, give a loss that is not finite."""
    put, count = sharding.put_batch, []

    def poisoned(batch, mesh):
        count.append(batch)
        if len(count) in steps:
            batch = {**batch, "weight": np.full_like(batch["weight"], np.inf)}
        return put(batch, mesh)

    monkeypatch.setattr(sharding, "put_batch", poisoned)
    return count


@pytest.mark.once
def test_after_bad_batches_in_a_row_a_run_goes_back_and_the_data_go_on(make_run, monkeypatch, capsys):
    train = TrainConfig(steps=8, batch_size=BATCH, learning_rate=0.01, log_every=1, max_skipped=2, max_rollbacks=1)
    every = {"checkpoint": CheckpointConfig(every=2, keep=9), "evaluate": EvaluateConfig(every=100, batch_size=BATCH)}
    run = make_run("run", train=train, **every)
    with monkeypatch.context() as patch:
        seen = poison(patch, {3, 6, 7})
        fitted = run.fit()
    said = capsys.readouterr().out
    assert "is not finite: back to step 6, past these batches" in said
    assert said.count("attention: xla on cpu (float32, 12 positions)\n") == 1
    held_out = {batch["token_ids"].tobytes() for batch in run.validation()}
    trained = [batch["token_ids"].tobytes() for batch in seen if batch["token_ids"].tobytes() not in held_out]
    straight = run.training()
    assert trained == [next(straight)["token_ids"].tobytes() for _ in range(len(trained))], "no batch comes twice"
    straight.close()
    lines = {line["step"]: line for line in run.lines() if "loss" in line}
    assert list(lines) == [1, 2, 3, 4, 5, 6, 7, 8] and len(trained) == 10
    assert lines[2]["skipped"] == 0 and lines[8]["skipped"] == int(fitted.state.skipped) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))


@pytest.mark.once
def test_a_run_that_cannot_go_on_stops_and_leaves_the_batch(make_run, monkeypatch):
    train = TrainConfig(steps=8, batch_size=BATCH, learning_rate=0.01, log_every=1, max_skipped=2, max_rollbacks=1)
    run = make_run("run", train=train, checkpoint=CheckpointConfig(every=100))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="after going back 1 times; the last batch is"):
        seen = poison(patch, range(2, 20))
        run.fit()
    saved = np.load(run.folder / "bad_batch_0.npz")
    assert any((saved["token_ids"] == batch["token_ids"]).all() for batch in seen[2:])


@pytest.mark.once
def test_a_run_whose_newest_checkpoint_is_damaged_repeats_what_was_lost(make_run, numbers):
    run = make_run("run", dropout=0.1)
    wanted, lines = numbers(run.fit().state), run.lines()
    files = (run.folder / "checkpoints" / "4" / "params").rglob("*")
    victim = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = numbers(run.fit().state)
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"2", "4", "4.damaged"}
    assert run.lines() == lines
    for path, value in wanted.items():
        np.testing.assert_array_equal(value, found[path], err_msg=path)


def test_sigterm_is_watched_in_the_main_thread_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def elsewhere():
        with watch_sigterm() as came:
            found.append((came(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, before)]
    with watch_sigterm() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.once
def test_the_best_parameters_are_returned_and_every_line_belongs_to_its_step(make_run, examples, numbers):
    """The validation set has the opposite labels: the better the training, the worse its loss."""
    labels = examples[1]
    run = make_run(
        "worse", labels=labels, validation_labels=1 - labels,
        train=TrainConfig(steps=7, batch_size=BATCH, learning_rate=0.01, log_every=3),
        optim=OptimConfig(schedule="linear", warmup_steps=2), checkpoint=CheckpointConfig(every=2, keep=1),
        evaluate=EvaluateConfig(every=2, batch_size=BATCH),
    )  # fmt: skip
    fitted = run.fit()
    losses = {line["step"]: line["validation/loss"] for line in run.lines() if "validation/loss" in line}
    assert list(losses) == [2, 4, 6, 7] and min(losses, key=losses.get) == 2 and losses[7] > losses[2] + 1e-3
    with Checkpoints(run.folder / "checkpoints", run.config.checkpoint, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 7]
        saved = checkpoints.restore_params(2, fitted.params)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a)), fitted.params, fitted.state.params)
    best, last = numbers(fitted.params), numbers(fitted.state.params)
    assert all((best[path] != last[path]).any() for path in best)
    for path, value in numbers(saved).items():
        np.testing.assert_array_equal(value, best[path])
    early = run.fit(until=2)  # nothing is left to do; the state is that of step 7, the best one still that of step 2
    assert int(early.state.step) == 7
    for path, value in numbers(early.params).items():
        np.testing.assert_array_equal(value, best[path])

    # Logged: the first step, every third, the last; each with its own rate, 1/2 and 1 of the peak, then 4/5, ...
    rates = {line["step"]: line["learning_rate"] for line in run.lines() if "learning_rate" in line}
    assert rates == pytest.approx({1: 0.005, 3: 0.01, 6: 0.004, 7: 0.002}, rel=1e-5)

    other = make_run("better", labels=labels, train=run.config.train, optim=run.config.optim,
                     checkpoint=run.config.checkpoint, evaluate=run.config.evaluate)  # fmt: skip
    fitted = other.fit(until=4)
    losses = {line["step"]: line["validation/loss"] for line in other.lines() if "validation/loss" in line}
    assert losses[4] < losses[2]
    assert fitted.params is fitted.state.params


# --- batches and devices


def sized(size, accumulate=1, evaluation=64, **train):
    train = TrainConfig(batch_size=size, accumulate=accumulate, **train)
    return Config(train=train, evaluate=EvaluateConfig(batch_size=evaluation))


@pytest.mark.parametrize("shape", ["data=8", "data=4,fsdp=2", "fsdp=8"])
def test_a_batch_must_divide_among_data_and_fsdp(shape):
    mesh = sharding.make_mesh(shape)
    check_mesh(sized(16), mesh)
    check_mesh(sized(16, accumulate=2), mesh)
    with pytest.raises(
        UserError, match=r"^config\.train\.batch_size=12: must be a multiple of 8, the mesh's rows \(data x fsdp\)"
    ):
        check_mesh(sized(12), mesh)
    with pytest.raises(
        UserError, match=r"train\.batch_size=24: must be a multiple of 16, .* times train\.accumulate=2$"
    ):
        check_mesh(sized(24, accumulate=2), mesh)
    with pytest.raises(
        UserError, match=r"^config\.finetune\.evaluate\.batch_size=20: must be a multiple of 8, [^,]*\(data x fsdp\)$"
    ):
        check_mesh(sized(16, accumulate=2, evaluation=20), mesh, "config.finetune")
    with pytest.raises(
        UserError, match=r"train\.batch_size=16: must be a multiple of 32, .* times 4, by which train\.r"
    ):
        check_mesh(sized(16, ramp_share=0.1), mesh)
    check_mesh(sized(32, ramp_share=0.1), mesh)


def test_the_attention_that_is_asked_for_must_serve_the_run():
    mesh, config = sharding.make_mesh("data=8"), sized(16)
    check_attention(config, mesh)
    for name, reason in (("cudnn", "it is for NVIDIA GPUs"), ("banded", "is for windows")):
        wanted = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=name))
        with pytest.raises(UserError, match=rf"^config\.pretrain\.model\.attention='{name}': {reason}.*; choose 'xla'"):
            check_attention(wanted, mesh, "config.pretrain")


def test_the_tensor_axis_takes_no_rows():
    check_mesh(sized(4, evaluation=4), sharding.make_mesh("data=2,fsdp=2,tensor=2"))
    with pytest.raises(UserError, match=r"batch_size=2: must be a multiple of 4"):
        check_mesh(sized(2, evaluation=4), sharding.make_mesh("data=2,fsdp=2,tensor=2"))


def test_positions_and_heads_are_spread_evenly():
    config = dataclasses.replace(sized(8, evaluation=8), model=ModelConfig(num_heads=6), data=DataConfig(max_length=30))
    check_mesh(config, sharding.make_mesh("data=4,tensor=2"))
    check_mesh(config, sharding.make_mesh("data=4,sequence=2"))
    with pytest.raises(UserError, match=r"^config\.model\.num_heads=6: must be a multiple of 4, the mesh's tensor$"):
        check_mesh(config, sharding.make_mesh("data=2,tensor=4"))
    with pytest.raises(UserError, match=r"^config\.data\.max_length=30: must be a multiple of 4, the mesh's sequence$"):
        check_mesh(config, sharding.make_mesh("data=2,sequence=4"))
