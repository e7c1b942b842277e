"""The train step: one function for every objective."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lepton_jax.config import Config, OptimConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding, trees
from lepton_jax.models.transformer import Transformer
from lepton_jax.optim import Numbers, make_numbers, make_optimizer, rate_of
from lepton_jax.tasks import Batch, Metrics, Task
from lepton_jax.train.state import TrainState, abstract_state, trainable

PureStep = Callable[[TrainState, Batch, Numbers], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task, model: Transformer, config: OptimConfig, trainable: Any, accumulate: int = 1
) -> PureStep:
    """Returns the pure function (state, batch, numbers) -> (state, metrics).

    Of the config, what `Numbers` has comes from there: learning rate, warm-up, steps and decay are no constants.
    Frozen parameters are split off before the gradient: they have neither gradients nor optimizer state. Layers of a
    stack of which others are trained (see `train.state.trainable`) are computed and stored with these, but their
    gradient and their update are 0. A batch whose loss or gradient is not finite changes neither parameters nor
    optimizer state, and is counted.
    Metrics are []: those of the task, `gradient_norm` (before clipping) and `learning_rate` in float32, and `skipped`,
    the number of updates left out so far, in int32.
    """
    kept, _ = trees.split(trainable, trainable)

    def hold(tree: Any) -> Any:
        return jax.tree.map(lambda leaf, yes: leaf if yes is True else jnp.where(yes, leaf, 0), tree, kept)

    def train_step(state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        optimizer, schedule = _optimizer(config, numbers)
        free, frozen = trees.split(state.params, trainable)

        def loss(free: Any, part: Batch, index: jax.Array | int) -> tuple[jax.Array, Metrics]:
            rng = rngs.stream(state.rng, "step", state.step, index)
            return task.loss(model, trees.merge(free, frozen), part, rng)

        grads, metrics = mean_gradients(loss, free, batch, accumulate)
        grads = hold(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, free)
        updates = hold(updates)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        free, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(free, updates), opt_state),
            (free, state.opt_state),
        )
        rate = jnp.asarray(schedule(state.step - state.skipped))  # the optimizer counts its updates alone
        skipped = state.skipped + (~finite).astype(jnp.int32)
        metrics |= {"gradient_norm": norm, "learning_rate": rate, "skipped": skipped}
        params = trees.merge(free, frozen)
        return TrainState(state.step + 1, skipped, params, opt_state, state.rng), metrics

    return train_step


def mean_gradients(
    loss: Callable[[Any, Batch, Any], tuple[jax.Array, Metrics]], params: Any, batch: Batch, parts: int
) -> tuple[Any, Metrics]:
    """Returns gradients and metrics of a batch, computed in `parts` one after another.

    Each part counts with its number of targets (`metrics["weight"]`), so the result is the mean over all targets
    of the batch, however they fall into parts.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (_, metrics), grads = gradient(params, batch, 0)
        return grads, metrics

    def weigh(tree: Any, weight: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf * weight, tree)

    def add(total: Any, index_and_part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, part = index_and_part
        (_, metrics), grads = gradient(params, part, index)
        weight = metrics.pop("weight")
        return jax.tree.map(jnp.add, total, (*weigh((grads, metrics), weight), weight)), None

    # Every parts-th row, not consecutive ones: a part then takes equally many rows from each device.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(lambda: gradient(params, jax.tree.map(lambda x: x[0], split), 0))
    (_, metrics), grads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = (grads, {name: value for name, value in metrics.items() if name != "weight"}, metrics["weight"])
    (grads, metrics, weight), _ = jax.lax.scan(add, start, (jnp.arange(parts), split))
    grads, metrics = weigh((grads, metrics), 1.0 / jnp.maximum(weight, 1.0))
    return grads, {**metrics, "weight": weight}


def _optimizer(config: OptimConfig, numbers: Numbers) -> tuple[optax.GradientTransformation, optax.Schedule]:
    schedule: Any = functools.partial(rate_of, config.schedule, numbers=numbers)
    return make_optimizer(config, schedule, numbers.weight_decay), schedule


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The jitted step of a run: (state, batch) -> (state, metrics), with the run's own numbers."""

    jitted: Any  # of a `PureStep`
    numbers: Numbers  # in numpy
    mesh: Mesh

    @functools.cached_property
    def _placed(self) -> Numbers:
        """Once and not before the first call: the devices of a mesh may be none of this machine's."""
        return jax.tree.map(lambda number: sharding.place(number, sharding.replicated(self.mesh)), self.numbers)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.jitted(state, batch, self._placed)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Returns the traced program, for arrays or for shapes; it says nothing of the numbers."""
        return self.jitted.lower(state, batch, self.numbers)


def jit_train_step(step: PureStep, state: TrainState, mesh: Mesh, numbers: Numbers) -> TrainStep:
    """Compiles a step for a state (arrays, or shapes with shardings): rows split, state in place, buffers donated."""
    where, everywhere = jax.tree.map(lambda leaf: leaf.sharding, state), sharding.replicated(mesh)
    jitted = jax.jit(
        step,
        in_shardings=(where, sharding.by_rows(mesh), everywhere),
        out_shardings=(where, everywhere),
        donate_argnums=0,
    )
    return TrainStep(jitted, numbers, mesh)


class Program(NamedTuple):
    """The train step of a run, the state that it is for (shapes with shardings), and that state's optimizer."""

    step: TrainStep
    abstract: TrainState
    optimizer: optax.GradientTransformation


def make_program(config: Config, mesh: Mesh, task: Task, model: Transformer) -> Program:
    """Returns the train step that a config describes, for a mesh; nothing is computed or compiled yet.

    Configs that differ by what `Numbers` has, and by the seed, have the same program: compiled by one run, the others
    find it in the compilation cache.
    """
    numbers = make_numbers(config.optim, config.train)
    optimizer, _ = _optimizer(config.optim, numbers)
    abstract = abstract_state(model, optimizer, config.optim, mesh)
    chosen = trainable(config.optim, abstract.params)
    step = make_train_step(task, model.on(mesh), config.optim, chosen, config.train.accumulate)
    return Program(jit_train_step(step, abstract, mesh, numbers), abstract, optimizer)
