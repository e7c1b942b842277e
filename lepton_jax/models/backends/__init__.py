"""The programs that compute attention, and which of them a case gets.

Each is a module with `attend` and with `refuses`, which says why it cannot serve a case. Every one of them keeps the
documents of a row apart; nothing falls back in silence.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from lepton_jax.core.errors import UserError
from lepton_jax.core.sharding import ROW_AXES
from lepton_jax.models.backends import banded, cudnn, int8, splash, triton, xla
from lepton_jax.models.backends.case import Case, Inputs

BACKENDS: dict[str, ModuleType] = {
    "xla": xla, "banded": banded, "cudnn": cudnn, "triton": triton, "splash": splash, "int8": int8
}  # fmt: skip
_PER_DEVICE = ("triton", "splash", "int8")  # what XLA cannot split: kernels, and loops over rows
_LONG = 1024  # positions above which a mask [B, 1, T, T] takes too much memory


def choose(case: Case, wanted: str = "auto", where: str = "config") -> str:
    """Returns the name of the backend that serves a case.

    Args:
      case: what is known of the attention.
      wanted: `model.attention`: a name, or "auto". "banded" is for windows, so that layers without one get what "auto"
        gives them.
      where: the path of the config, for messages.

    Raises:
      UserError: the wanted backend cannot serve the case.
    """
    preferred = wanted == "auto" or (wanted == "banded" and case.window is None)
    reason = None if preferred else BACKENDS[wanted].refuses(case)
    if not preferred and reason is None:
        return wanted  # without a look at the length, which may be a symbol
    fit = next(name for name in _preferred(case) if BACKENDS[name].refuses(case) is None)
    if reason is not None:
        raise UserError(f"{where}.model.attention={wanted!r}: {reason}; choose {fit!r}, or 'auto'")
    return fit


def _preferred(case: Case) -> list[str]:
    """Returns the names that are worth a try, the fastest first; the last of them serves all."""
    blocks = ["banded"] if banded.pays(case) else []
    if case.platform == "cpu":
        return [*blocks, "xla"]
    if case.length > _LONG and case.window is not None:
        kernels = ["splash", "banded", "cudnn"]
    elif case.length > _LONG and case.rows == "packed" and case.half:
        kernels = ["splash", "triton", "cudnn"]
    else:
        kernels = ["splash", "cudnn"]
    return [*kernels, *blocks, "xla"]


def attend(
    name: str,
    case: Case,
    mesh: Mesh | None,
    inputs: Inputs,
    **options: Any,
) -> jax.Array:
    """Returns the attention [B, T, H, K] of a case by the backend of a name, which must not refuse it.

    Args:
      name, case: see `choose`.
      mesh, inputs: see `attention`.
      options: `scale`, and for "xla" `bias_BxHxTxT` and `local`.
    """
    fn = partial(BACKENDS[name].attend, case, **options)
    if mesh is not None and name in _PER_DEVICE:  # each device runs it on its own rows and heads
        spec: Any = PartitionSpec(ROW_AXES, None, "tensor", None)
        rows: Any = PartitionSpec(ROW_AXES, None)
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(Inputs(spec, spec, spec, rows),), out_specs=spec, check_vma=False)
    return fn(inputs)
