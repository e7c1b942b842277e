"""The loop: batches through the step, with logging, evaluation, checkpoints and resume. The same for every stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import Config
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data.batches import Streams
from lepton_jax.models.attention import backends_of
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import Task
from lepton_jax.train import ramp
from lepton_jax.train.forecast import row_flops
from lepton_jax.train.guard import Guard
from lepton_jax.train.logging import MetricsLogger
from lepton_jax.train.patience import Patience
from lepton_jax.train.state import TrainState, make_state
from lepton_jax.train.step import Program, make_program
from lepton_jax.train.stopping import Stopped, watch_sigterm
from lepton_jax.train.tracing import Trace
from lepton_jax.train.utilisation import peak_flops


@dataclasses.dataclass(frozen=True)
class Fitted:
    state: TrainState  # after the last step
    params: Any  # of the best checkpoint by `checkpoint.best`


_count = jax.jit(jnp.count_nonzero)


def check_mesh(config: Config, mesh: Mesh, where: str = "config") -> None:
    """Raises UserError where rows, positions or heads of a run do not divide among the devices and processes."""
    rows, shape = sharding.row_shards(mesh), mesh.shape
    accumulate, growth = config.train.accumulate, config.train.batch_size // ramp.part_rows(config.train)
    over = "the mesh's rows (data x fsdp)"
    over += f" over {jax.process_count()} processes" * (jax.process_count() > 1)
    for field, size, parts, axes in (
        ("train.batch_size", config.train.batch_size, rows * accumulate * growth,
         over + f" times train.accumulate={accumulate}" * (accumulate > 1)
         + f" times {growth}, by which train.ramp_share has it grow" * (growth > 1)),
        ("evaluate.batch_size", config.evaluate.batch_size, rows, over),
        ("data.max_length", config.data.max_length, shape["sequence"], "the mesh's sequence"),
        # A model that comes from elsewhere is checked again when it is there.
        ("model.num_heads", 0 if config.model.init else config.model.num_heads, shape["tensor"], "the mesh's tensor"),
    ):  # fmt: skip
        if size % parts:
            raise UserError(f"{where}.{field}={size}: must be a multiple of {parts}, {axes}")


def check_attention(config: Config, mesh: Mesh, where: str = "config") -> None:
    """Raises UserError where the attention that a run asks for cannot serve its model, rows and devices."""
    if not config.model.init:  # a model that comes from elsewhere is checked when it is there
        backends_of(config.model, config.data.max_length, config.isolates, mesh, where)


def _attention_line(config: Config, model: Transformer, mesh: Mesh) -> str:
    """Returns such as "attention: banded on cpu (float32, 512 positions, window 64), xla without a window"."""
    found = backends_of(model.config, config.data.max_length, config.isolates, mesh)
    (case, name), *others = found.items()
    window = "" if case.window is None else f", window {case.window}"
    line = f"attention: {name} on {case.platform} ({case.dtype}, {case.length} positions{window})"
    return line + "".join(f", {other} without a window" for _, other in others)


def fit(
    config: Config,
    workdir: Path,
    *,
    mesh: Mesh,
    task: Task,
    model: Transformer,
    batches: Streams,
    evaluate: Callable[[Any], Mapping[str, float]],
    init: dict[str, Any] | None = None,
    program: Program | None = None,
    until: int | None = None,
) -> Fitted:
    """Trains for `config.train.steps` steps in all, from the newest checkpoint in `workdir` if there is one.

    It ends earlier where `Patience` is over. A step is saved at each multiple of `checkpoint.every`, at the end, and
    where its evaluation is the best so far.

    Args:
      config: the run's config, `model` resolved.
      workdir: gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
      mesh: the devices.
      task, model: the objective and the modules.
      batches: endless training batches of this process's rows, whose position is saved; each a part, see `ramp`.
      evaluate: gives the validation metrics of parameters.
      init: parameters to start from, see `make_state`.
      program: of another run that differs by its seed alone, so that nothing is compiled again; None: made here.
      until: stop, saved, after this step instead of the last one; the schedule does not change.

    Raises:
      Stopped: SIGTERM came, and the state after the step under way is saved.
      UserError: the loss is not finite, and going back does not help, see `Guard`.
    """
    step_fn, abstract, optimizer = program or make_program(config, mesh, task, model)
    if jax.process_index() == 0:
        print(_attention_line(config, model, mesh))
    last = config.train.steps if until is None else min(until, config.train.steps)

    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:

        def resume(data: Any) -> tuple[int, TrainState]:
            saved = checkpoints.restore_newest(abstract, data)
            return saved or (0, make_state(model, optimizer, config.optim, mesh, config.train.seed, init))

        step, state = resume(batches)
        guard = Guard(config.train, workdir)
        guard.start(state.skipped)
        patience = Patience(config, workdir, step)
        peak, work = peak_flops(list(mesh.devices.flat)), functools.cache(partial(row_flops, task, model))
        with (
            watch_sigterm() as asked_to_stop,
            MetricsLogger(workdir, config.train.steps, step, peak_flops=peak, config=config) as logger,
            Trace(workdir / "profile", config.train.profile, step) as trace,
        ):
            tokens, flops = [], 0.0  # of all processes, in each step since the last log
            while step < last and not patience.is_over:
                step += 1
                batch = batches.take(ramp.parts(config.train, step))
                placed = sharding.put_batch(batch, mesh)
                tokens.append(_count(placed["attention_mask"]))
                rows, length = placed["token_ids"].shape
                flops += rows * work(length)
                with trace.step(step):
                    state, metrics = step_fn(state, placed)
                if traced := trace.after(step, metrics):
                    logger.note(traced)
                # Both look at an earlier step, now that the next one is under way: devices never wait.
                logger.flush()
                stops = asked_to_stop()
                if guard.goes_back(step, metrics["skipped"], batch):
                    checkpoints.wait()
                    step, state = resume(None)  # the data stay where they are, past these batches
                    logger.rewind(step, f"the loss or gradient is not finite: back to step {step}, past these batches")
                    guard.start(state.skipped)
                    patience.start(step)
                    continue
                if step == 1 or step == last or step % config.train.log_every == 0:
                    logger.defer(step, metrics, tokens, flops)
                    tokens, flops = [], 0.0
                evaluates = step == config.train.steps or step % config.evaluate.every == 0
                saves = stops or step == last or step % config.checkpoint.every == 0
                if evaluates or saves:
                    with logger.paused():
                        validated = evaluate(state.params) if evaluates else None
                        if validated is not None:
                            logger.log(step, validated, prefix="validation")
                            saves |= patience.look(step, validated)
                        if saves:
                            checkpoints.save(step, state, batches, validated)
                    if patience.is_over:
                        logger.note(patience.reason)
                if stops:
                    checkpoints.wait()
                    done = f"{step} of {config.train.steps} steps are done and saved"
                    raise Stopped(f"{workdir}: stopped by SIGTERM, {done}; the same command goes on")
        checkpoints.wait()
        best, params = checkpoints.best(), state.params
        if best is not None and best != int(state.step):
            params = checkpoints.restore_params(best, abstract.params)
    return Fitted(state, params)
