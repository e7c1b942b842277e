"""The one train step with weights that are rounded wherever they multiply: on any mesh, and for plain parameters."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.compress import Inputs, fake_int8
from lepton_jax.config import Config, OptimConfig, TrainConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding
from lepton_jax.tasks.viewed import Viewed
from lepton_jax.train.step import make_program

CONFIG = Config(optim=OptimConfig(epsilon=1e-3), train=TrainConfig(learning_rate=0.03, steps=100))


def test_a_mesh_changes_little_but_which_way_a_tie_is_rounded(training, rows, numbers):
    """A sum in another order may end on the other side of a half: the tolerances are those of a few such steps."""
    setup = training("masked_lm", optim=CONFIG.optim, train=CONFIG.train)
    start, batch = setup.start(), rows()
    inputs = {
        f"layers/feed_forward/{name}/kernel": Inputs(step=np.full((2, 1, 1), 0.02, np.float32))
        for name in ("up", "down")
    }
    aware = Viewed(setup.task, partial(fake_int8, inputs=inputs))
    losses, after = [], []
    for shape in ("", "data=2,fsdp=2,tensor=2"):
        mesh = sharding.make_mesh(shape, None if shape else jax.devices()[:1])
        step, abstract, _ = make_program(CONFIG, mesh, aware, setup.model)
        assert jax.tree.structure(abstract) == jax.tree.structure(start), "the state is one of plain floats"
        state = jax.tree.map(lambda leaf, wanted: jax.device_put(jnp.copy(leaf), wanted.sharding), start, abstract)
        state, metrics = step(state, sharding.put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
        after.append(numbers(state.params))
    rng = rngs.stream(start.rng, "step", start.step, 0)
    plain, _ = jax.jit(partial(setup.task.loss, setup.model))(start.params, batch, rng)
    assert abs(losses[0] - plain) > 3e-4 * plain and abs(losses[1] - losses[0]) < 1e-4 * plain
    before, (one, spread) = numbers(start.params), after
    for path in before:
        moved = np.abs(one[path] - before[path]).max()
        np.testing.assert_allclose(spread[path], one[path], atol=0.05 * moved + 1e-5, err_msg=path)
    assert max(np.abs(one[path] - before[path]).max() for path in before) > 0.01
