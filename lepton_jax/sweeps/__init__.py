"""Experiments: variants of a config, their runs, and searches. An experiment is a file, see `sweeps.experiment`."""

from __future__ import annotations

from lepton_jax.sweeps.conduct import ablate
from lepton_jax.sweeps.experiment import Experiment, Member, load
from lepton_jax.sweeps.searching import choice, integers, log_uniform, search, uniform
from lepton_jax.sweeps.variants import SEED, Variant, case, chain, product, seeds, vary, zip

__all__ = [
    "SEED",
    "Experiment",
    "Member",
    "Variant",
    "ablate",
    "case",
    "chain",
    "choice",
    "integers",
    "load",
    "log_uniform",
    "product",
    "search",
    "seeds",
    "uniform",
    "vary",
    "zip",
]
