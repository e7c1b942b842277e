"""Runs that differ by their numbers alone: one program, which each of them uses with its own numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lepton_jax.config import CheckpointConfig, Config, DataConfig, EvaluateConfig, OptimConfig, TaskConfig, TrainConfig
from lepton_jax.data.batches import evaluation_batches, training_batches
from lepton_jax.data.rows import Rows
from lepton_jax.optim import make_numbers
from lepton_jax.train.evaluate import make_evaluate
from lepton_jax.train.forecast import abstract_batch
from lepton_jax.train.loop import fit
from lepton_jax.train.step import make_program

EVERY = {
    "train": {"steps": 5, "learning_rate": 0.2, "seed": 7},
    "optim": {"warmup_steps": 2, "weight_decay": 0.0, "decay_share": 0.5},
}


def changed(config: Config, **sections: dict) -> Config:
    for name, changes in sections.items():
        config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **changes)})
    return config


@pytest.fixture(scope="module")
def config(training) -> Config:
    return Config(
        model=training().config,
        task=TaskConfig(name="classification"),
        data=DataConfig(max_length=12, batching="padded"),
        optim=OptimConfig(warmup_steps=1),
        train=TrainConfig(steps=8, batch_size=8, learning_rate=0.01, log_every=1),
        checkpoint=CheckpointConfig(every=100),
        evaluate=EvaluateConfig(every=100),
    )


@pytest.mark.parametrize("kind", ["adamw wsd", "sgd cosine", "muon constant"])
def test_the_program_says_nothing_of_the_numbers(training, config, kind):
    setup = training("classification")
    name, schedule = kind.split()
    config = changed(config, optim={"name": name, "schedule": schedule})

    def text(config: Config) -> str:
        program = make_program(config, setup.mesh, setup.task, setup.model)
        return program.step.lower(program.abstract, abstract_batch(config, setup.mesh)).as_text()

    plain = text(config)
    assert text(changed(config, optim={"clip_norm": 0.5})) != plain, "what is a constant is seen"
    assert text(changed(config, **EVERY)) == plain


def test_each_number_changes_what_the_one_program_does(training, rows, numbers):
    setup = training("classification", optim=OptimConfig(schedule="wsd", warmup_steps=1), train=TrainConfig(steps=8))
    program, batch = setup.step, setup.put(rows())

    def run(optim: OptimConfig, train: TrainConfig) -> dict[str, np.ndarray]:
        step, state = dataclasses.replace(program, numbers=make_numbers(optim, train)), setup.start()
        for _ in range(3):
            state, _ = step(state, batch)
        return numbers(state.params)

    plain = run(setup.optim, setup.train)
    again = run(setup.optim, setup.train)
    assert all((plain[path] == again[path]).all() for path in plain)
    for name, value in (("warmup_steps", 2), ("weight_decay", 0.0), ("decay_share", 1.0)):
        other = run(dataclasses.replace(setup.optim, **{name: value}), setup.train)
        assert any((plain[path] != other[path]).any() for path in plain), name
    for name, value in (("learning_rate", 0.2), ("steps", 2)):
        other = run(setup.optim, dataclasses.replace(setup.train, **{name: value}))
        assert any((plain[path] != other[path]).any() for path in plain), name
    assert program.jitted._cache_size() == 1


@contextlib.contextmanager
def compiling_into(folder: Path) -> Iterator[None]:
    """Keeps every program that is compiled, in an empty folder."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.mark.once
def test_a_sweep_trains_and_evaluates_with_what_its_first_run_compiled(training, config, numbers, tmp_path):
    setup = training("classification")
    draw = np.random.default_rng(0)
    rows = Rows([draw.integers(5, 64, 9).astype(np.int32) for _ in range(40)], draw.integers(0, 3, 40).astype(np.int32))

    def run(name: str, config: Config) -> tuple[dict[str, np.ndarray], set[str]]:
        """Returns the parameters after two steps, and the programs that are kept then."""
        means = make_evaluate(setup.task, setup.model, setup.mesh)
        batches = training_batches(rows, 8, 12, pack=False, pad_id=0, seed=0)
        with contextlib.closing(batches):
            fitted = fit(
                config, tmp_path / name, mesh=setup.mesh, task=setup.task, model=setup.model, batches=batches,
                evaluate=lambda params: means(params, evaluation_batches(rows, 8, 12, pack=False, pad_id=0)),
                until=2,
            )  # fmt: skip
            means(fitted.params, evaluation_batches(rows, 8, 12, pack=False, pad_id=0))
        return numbers(fitted.params), {path.name for path in (tmp_path / "xla").glob("*-cache")}

    with compiling_into(tmp_path / "xla"):
        first, programs = run("first", config)
        assert any("train_step" in name for name in programs) and any("metrics_of" in name for name in programs)
        params, then = run("second", changed(config, **EVERY))
        assert all((params[path] != first[path]).any() for path in first)
        assert then == programs
        _, then = run("other", changed(config, optim={"clip_norm": 0.5}))
        assert {name.partition("-")[0] for name in then - programs} == {"jit_train_step"}
