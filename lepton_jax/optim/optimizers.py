"""The optimiser of a config."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
import optax.contrib

from lepton_jax.config import OptimConfig
from lepton_jax.core import trees
from lepton_jax.optim.rates import scale_rates

_LAYER_KERNEL = r"(^|/)layers(_\d+)?/.*/kernel$"
_ADAM_RMS = 0.2  # root mean square of an update of Adam at rate 1, as measured in arXiv:2502.16982


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, weight_decay: jax.Array | float
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), SGD with momentum or Muon, after clipping.

    Muon (Jordan 2024) is for the matrices of the layers, each layer of a stack by itself: Nesterov momentum of
    `config.momentum`, made nearly orthogonal by five Newton-Schulz steps. All else, embeddings and heads among it, has
    Adam's direction, with Nesterov's momentum too. Muon's steps get the root mean square of Adam's (Liu et al. 2025,
    arXiv:2502.16982, section 2.2), so that one learning rate and one decay serve both.
    Weight decay spares the parameters whose paths match `config.no_decay`. At the end `scale_rates` scales the updates
    of each parameter, where the config has rates, a decay over the layers, or unfreezing.

    Args:
      config: all that a compiled step holds as constants.
      schedule: count of updates, int32 [] -> learning rate, float32 [].
      weight_decay: float32 []; as the schedule it may be made of arguments of the step, see `Numbers`. The structure
        of the state depends on neither.
    """

    def decayed(params: Any) -> Any:
        return trees.map_with_path(lambda path, _: not trees.matches(config.no_decay, path), params)

    if config.name == "adamw":
        update = optax.adamw(
            schedule, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay, mask=decayed
        )
    elif config.name == "muon":
        # At a rate of -1 optax leaves the direction as it is; its own decay would not spare a norm.
        direction = optax.contrib.muon(
            -1.0,
            beta=config.momentum,
            eps=config.epsilon,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=_ADAM_RMS,
        )
        decay = optax.add_decayed_weights(weight_decay, decayed)
        update = optax.chain(direction, decay, optax.scale_by_learning_rate(schedule))
    else:
        decay = optax.add_decayed_weights(weight_decay, decayed)
        update = optax.chain(decay, optax.sgd(schedule, config.momentum or None))
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    scale = [scale_rates(config)] if config.rates or config.unfreeze or config.layer_decay != 1 else []
    return optax.chain(*clip, update, *scale) if clip or scale else update


def _matrices(params: Any) -> Any:
    """Returns a tree with the axes (in, out) of the parameters that are Muon's, and None for the others."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    return trees.map_with_path(lambda path, _: axes if re.search(_LAYER_KERNEL, path) else None, params)
