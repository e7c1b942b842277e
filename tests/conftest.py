"""Strict JAX for the whole suite: eight CPU devices, no rank promotion, 32-bit numbers.

The environment is set here, before anything imports jax. A variable that is set already keeps its value, so
`JAX_PLATFORMS=cuda pytest` runs the suite on a GPU.

A global transfer guard is not feasible: `jnp.ones(3)` is a transfer from the host. A test of a jitted step wraps
the step, and nothing else, in `jax.transfer_guard("disallow")`.
"""

from __future__ import annotations

import os
from pathlib import Path

DEVICES = 8

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
    )
# Compiled programs are kept from one run of the suite to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", False)
