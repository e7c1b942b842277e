"""Learning rate by step: a linear warm-up, then constant, linear, cosine or warm-up-stable-decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lepton_jax.optim.numbers import Numbers


def rate_of(kind: str, step: ArrayLike, numbers: Numbers) -> jax.Array:
    """Returns the learning rate of a step: from 0 to the peak in the warm-up, at 0 again after the last step.

    "wsd" stays at the peak and falls linearly over the last steps (Hu et al. 2024, arXiv:2404.06395): it is "linear"
    that begins to fall later, see `make_numbers`. "cosine" falls along half a period, "constant" never does.
    The values are those of optax's schedules to the last bit; these cannot take their settings as arguments of a
    compiled program.

    Args:
      kind: `optim.schedule`.
      step: int32, any shape, the updates so far: 0 at the first one.
      numbers: of the run.

    Returns:
      float32, of the shape of `step`.
    """
    peak, warmup, fall = numbers.learning_rate, numbers.warmup_steps, numbers.fall_steps
    # The first step of a warm-up of n steps already learns: rates 1/n, 2/n, ...
    last = jnp.maximum(warmup - 1, 1)
    ramp = numbers.rise * (1 - jnp.clip(step, 0, last) / last) + peak
    fallen = jnp.clip(step - numbers.fall_from, 0, fall)
    if kind == "constant":
        after = peak
    elif kind == "cosine":
        after = peak * (0.5 * (1 + jnp.cos(jnp.pi * fallen / fall)))
    else:
        after = peak * (1 - fallen / fall)
    return jnp.where(step < warmup, ramp, after)
