"""How fast each parameter learns: factors of the learning rate by path rules and by depth, and gradual unfreezing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.config import OptimConfig
from lepton_jax.core import rules, trees
from lepton_jax.optim import layers

_LAYER = re.compile(r"((?:^|.*/))layers_(\d+)/")  # of a name: what is before the layers, and which one it is
_BELOW = re.compile(r"((?:^|.*/))(?:embeddings|relative)/")  # what comes before the lowest layer


class ThawState(NamedTuple):
    count: jax.Array  # int32 [], the number of updates so far


def scale_rates(config: OptimConfig) -> optax.GradientTransformation:
    """Returns the transformation that ends a chain: it multiplies each update, or holds it back.

    As the last one it scales what weight decay adds too, so that a factor f is what a learning rate of f times the
    schedule would be. Until its step a value is held back it does not move, nor does it decay; but Adam's moments and
    the momentum follow its gradients meanwhile, and these count in the global norm. Adam corrects the bias of all its
    moments by one count: moments that began at 0 in the middle of a run would be taken for complete ones, and the
    first update be (1 - beta1) / sqrt(1 - beta2) in place of 1: 3.2 for 0.9 and 0.999.

    Raises (from `init`):
      UserError: a pattern matches no parameter that is trained.
    """
    rates, steps = _parse(config)

    def init(params: Any) -> Any:
        layers.require([pattern for pattern, _ in rates], params, "config.optim.rates")
        layers.require([pattern for pattern, _ in steps], params, "config.optim.unfreeze")
        return ThawState(jnp.zeros((), jnp.int32)) if steps else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def scale(path: str, leaf: jax.Array, factor: np.ndarray) -> jax.Array:
            start = layers.by_layer(lambda name: _first(steps, path, name, 0), path, leaf)
            leaf = leaf if (factor == 1).all() else leaf * jnp.asarray(factor, leaf.dtype)
            return jnp.where(state.count >= start, leaf, 0) if start.any() else leaf

        scaled = trees.map_with_path(scale, updates, factors(config, updates))
        return scaled, ThawState(state.count + 1) if steps else state

    return optax.GradientTransformation(init, update)


def factors(config: OptimConfig, params: Any) -> Any:
    """Returns by what the learning rate of each parameter is multiplied: float64 [L, 1, ...] of a stack, else [].

    The first pattern of `config.rates` that is found in a parameter's path gives its factor, else it is 1. With
    `config.layer_decay` = d below 1 it is multiplied by d^(L - l) in layer l = 0 .. L - 1, so by d in the highest one,
    and in the embeddings, below them, by d^(L + 1); what is above the layers (the last norm, pooler, head) keeps the
    full rate. These are the discriminative rates of Howard & Ruder 2018 (arXiv:1801.06146, section 3.2) with one
    ratio, as in Sun et al. 2019 (arXiv:1905.05583). The code of ELECTRA (Clark et al. 2020) has d^(L + 1 - l).
    """
    chosen, _ = _parse(config)
    depths: dict[str, int] = {}  # what is before the layers -> how many there are
    paths = jax.tree_util.tree_leaves_with_path(params)
    for name in (name for path, leaf in paths for name in layers.names(trees.path_str(path), leaf)):
        if layer := _LAYER.match(name):
            depths[layer[1]] = max(depths.get(layer[1], 0), int(layer[2]) + 1)

    def distance(name: str) -> int:
        """Returns how many layers are above, the own one included."""
        if layer := _LAYER.match(name):
            return depths[layer[1]] - int(layer[2])
        below = _BELOW.match(name)
        return depths.get(below[1], 0) + 1 if below else 0

    def of(path: str, leaf: Any) -> np.ndarray:
        return layers.by_layer(
            lambda name: config.layer_decay ** distance(name) * _first(chosen, path, name, 1.0), path, leaf
        )

    return trees.map_with_path(of, params)


def _parse(config: OptimConfig) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Returns the rules (pattern, factor) of the rates and (pattern, step) of unfreezing, in their order."""
    rates = [rules.parse(rule, float, "config.optim.rates") for rule in config.rates]
    return rates, [rules.parse(rule, int, "config.optim.unfreeze") for rule in config.unfreeze]


def _first(ordered: Sequence[tuple[str, float]], path: str, name: str, default: float) -> float:
    """Returns the number of the first pattern that is found."""
    return next((value for pattern, value in ordered if layers.find(pattern, path, name)), default)
