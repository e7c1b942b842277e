"""How much of what the devices could compute a run uses: the peak that utilisation is a share of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# FLOP/s of one device in dense bfloat16 products, from its maker's data sheet, under JAX's name for it. A device of TPU
# v2 and v3 is one of a chip's two cores.
PEAKS: dict[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA B200": 2250e12,
}
_SIDE = 1024  # of the matrices by which a CPU is measured: 15 ms on two cores


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Returns the FLOP/s that devices can reach together; None where their kind is not in `PEAKS`.

    A kind counts as the longest name in the table that it begins with. For a CPU, which has no such figure, the rate of
    one large float32 product is measured, once for all devices that are simulated on it.
    """
    first = devices[0]
    if first.platform == "cpu":
        return measured_flops() * jax.process_count()
    names = [name for name in PEAKS if first.device_kind.startswith(name)]
    return PEAKS[max(names, key=len)] * len(devices) if names else None


def measured_flops(side: int = _SIDE, dtype: Any = jnp.float32, times: int = 5) -> float:
    """Returns the FLOP/s of the product of two square matrices on the default device, the best of some times."""
    a = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.dot)
    multiply(a, a).block_until_ready()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best
