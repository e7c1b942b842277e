"""The one train step with weights that are rounded wherever they multiply: on any mesh, and for plain parameters."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.compress import Inputs, fake_int8
from lepton_jax.config import Config, OptimConfig, TrainConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding
from lepton_jax.tasks.viewed import Viewed
from lepton_jax.train.step import make_program

RATE = 0.1
PLAIN = OptimConfig(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.0, schedule="constant")
CONFIG = Config(optim=PLAIN, train=TrainConfig(learning_rate=RATE, steps=100))


@pytest.mark.once
def test_a_mesh_changes_little_but_which_way_a_tie_is_rounded(training, rows, numbers):
    """A sum in another order may end on the other side of a half: the tolerances are those of a few roundings."""
    setup = training("masked_lm", optim=CONFIG.optim, train=CONFIG.train)
    start, batch = setup.start(), rows()
    inputs = {
        f"layers/feed_forward/{name}/kernel": Inputs(step=np.full((2, 1, 1), 0.02, np.float32))
        for name in ("up", "down")
    }
    aware = Viewed(setup.task, partial(fake_int8, inputs=inputs))
    loss = jax.jit(jax.value_and_grad(partial(aware.loss, setup.model), has_aux=True))
    (wanted, _), grads = loss(start.params, batch, rngs.stream(start.rng, "step", start.step, 0))
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    step, abstract, _ = make_program(CONFIG, mesh, aware, setup.model)
    assert jax.tree.structure(abstract) == jax.tree.structure(start), "the state is one of plain floats"
    before = numbers(start.params)
    state = jax.tree.map(lambda leaf, wanted: jax.device_put(jnp.copy(leaf), wanted.sharding), start, abstract)
    state, metrics = step(state, sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(float(metrics["loss"]), wanted, rtol=1e-4)
    np.testing.assert_allclose(float(metrics["gradient_norm"]), optax.tree.norm(grads), rtol=1e-3)
    after, gradient = numbers(state.params), numbers(grads)
    for path, value in gradient.items():
        # The first step of stochastic gradient descent, at its rate.
        moved = before[path] - after[path]
        np.testing.assert_allclose(moved, RATE * value, atol=RATE * (0.05 * np.abs(value).max() + 1e-5), err_msg=path)
