"""The programs that compute attention, and which of them a case gets.

Each is a module with `attend` and with `refuses`, which says why it cannot serve a case. One that cannot keep documents
apart refuses packed rows; nothing falls back in silence.
"""

from __future__ import annotations

from types import ModuleType

from lepton_jax.core.errors import UserError
from lepton_jax.models.backends import banded, xla
from lepton_jax.models.backends.case import Case

BACKENDS: dict[str, ModuleType] = {"xla": xla, "banded": banded}


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
    fit = [name for name in _preferred(case) if BACKENDS[name].refuses(case) is None]
    if wanted == "auto" or (wanted == "banded" and case.window is None):
        return fit[0]
    reason = BACKENDS[wanted].refuses(case)
    if reason is not None:
        raise UserError(f"{where}.model.attention={wanted!r}: {reason}; choose {fit[0]!r}, or 'auto'")
    return wanted


def _preferred(case: Case) -> list[str]:
    """Returns the names that are worth a try, the fastest first; the last of them serves all."""
    return ["banded", "xla"] if banded.pays(case) else ["xla"]
