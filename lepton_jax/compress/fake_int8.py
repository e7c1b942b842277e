"""Quantisation-aware training: weights and inputs rounded as int8 will round them, while they are still trained.

A loss of `fake_int8(params)` in place of one of `params` teaches a model what the rounding does (Jacob et al. 2017,
arXiv:1712.05877, section 3). The parameters stay plain floats; `quantize_int8` of them, with the same arguments, gives
the int8 model that training saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.compress.calibration import Inputs
from lepton_jax.compress.int8 import map_weights
from lepton_jax.core.fake_int8 import FakeInt8


def fake_int8(params: Any, keep_float: Sequence[str] = (), inputs: Mapping[str, Inputs] | None = None) -> Any:
    """Maps float parameters to the tree in which kernels and embedding tables are `FakeInt8`, see `quantize_int8`."""
    return map_weights(lambda leaf, axis, own: FakeInt8(leaf, *own, axis), params, keep_float, inputs)
