"""The optimiser of a config."""

from __future__ import annotations

from typing import Any

import optax

from lepton_jax.config import OptimConfig
from lepton_jax.core import trees


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) or SGD with momentum, after clipping.

    Weight decay spares the parameters whose paths match `config.no_decay`.
    """

    def decayed(params: Any) -> Any:
        return trees.map_with_path(lambda path, _: not trees.matches(config.no_decay, path), params)

    if config.name == "adamw":
        update = optax.adamw(
            schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decayed
        )
    else:
        decay = optax.add_decayed_weights(config.weight_decay, decayed)
        update = optax.chain(decay, optax.sgd(schedule, config.momentum or None))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update
