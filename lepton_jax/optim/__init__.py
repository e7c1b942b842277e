"""Optimisers and schedules from optax; path rules for rates, weight decay and unfreezing."""

from lepton_jax.optim.optimizers import make_optimizer
from lepton_jax.optim.schedules import make_schedule

__all__ = ["make_optimizer", "make_schedule"]
