"""Named model sizes. `tiny` and `small` follow Turc et al. 2019 (arXiv:1908.08962), `base` and `large` BERT."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "nano": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 512},
    "tiny": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "intermediate_size": 1024},
    "small": {"hidden_size": 512, "num_layers": 6, "num_heads": 8, "intermediate_size": 2048},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
}
