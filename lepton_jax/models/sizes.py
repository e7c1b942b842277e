"""Named model sizes. `tiny` and `small` follow Turc et al. 2019 (arXiv:1908.08962), `base` and `large` BERT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lepton_jax.core.errors import UserError, nearest

SIZES: dict[str, dict[str, Any]] = {
    "nano": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 512},
    "tiny": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "intermediate_size": 1024},
    "small": {"hidden_size": 512, "num_layers": 6, "num_heads": 8, "intermediate_size": 2048},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
}


def sized(recipe: str, name: str, names: Iterable[str] = SIZES, gated: bool = False) -> dict[str, Any]:
    """Returns the settings of `ModelConfig` for a size.

    Args:
      recipe: its file, for the message.
      name: of the size.
      names: those that the recipe has.
      gated: for a feed-forward with three matrices in place of two: two thirds of the width, rounded up to 64s, keep
        the number of parameters.

    Raises:
      UserError: the recipe has no such size.
    """
    if name not in names:
        raise UserError(f"configs/{recipe}:{name}: unknown size; {nearest(name, list(names))}")
    settings = dict(SIZES[name])
    if gated:
        settings["intermediate_size"] = -(-settings["intermediate_size"] * 2 // 3 // 64) * 64
    return settings
