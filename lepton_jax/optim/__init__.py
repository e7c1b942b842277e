"""Optimisers from optax, and schedules; path rules for rates, weight decay and unfreezing."""

from lepton_jax.optim.numbers import Numbers, make_numbers
from lepton_jax.optim.optimizers import make_optimizer
from lepton_jax.optim.schedules import rate_of

__all__ = ["Numbers", "make_numbers", "make_optimizer", "rate_of"]
