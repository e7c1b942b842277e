"""The state of training, and how it comes to lie on the devices of a mesh."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lepton_jax.config import OptimConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding, trees
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Transformer, abstract_params, init_params
from lepton_jax.optim import layers


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes, and all that a checkpoint needs besides the data position."""

    step: jax.Array  # int32 [], the number of batches seen
    skipped: jax.Array  # int32 [], how many of them gave no update: their loss or gradient was not finite
    params: Any  # trainable and frozen parameters in one tree
    opt_state: optax.OptState  # of the trainable ones alone
    rng: jax.Array  # typed key []; never changes: steps fold their number into it


def trainable(config: OptimConfig, params: Any) -> Any:
    """Returns a tree of bools with the structure of `params`: False where `optim.frozen` matches the path.

    A stack of which it matches some layers alone, see `optim.layers`, has an array of bools, [L, 1, ...].

    Raises:
      UserError: a pattern matches no parameter.
    """
    layers.require(config.frozen, params, "config.optim.frozen")

    def free(path: str, leaf: Any) -> Any:
        frozen = layers.by_layer(
            lambda name: any(layers.find(pattern, path, name) for pattern in config.frozen), path, leaf
        )
        return ~frozen if frozen.any() and not frozen.all() else not frozen.any()

    return trees.map_with_path(free, params)


def abstract_state(
    model: Transformer, optimizer: optax.GradientTransformation, config: OptimConfig, mesh: Mesh
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state, without computing anything.

    Raises:
      UserError: a parameter that no sharding rule covers, or that does not divide among the devices.
    """
    params = abstract_params(model)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(
        step=count,
        skipped=count,
        params=params,
        opt_state=jax.eval_shape(optimizer.init, trees.split(params, trainable(config, params))[0]),
        rng=jax.eval_shape(lambda: jax.random.key(0)),
    )
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        sharding.shardings(state, mesh, RULES),
    )


def make_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    config: OptimConfig,
    mesh: Mesh,
    seed: int,
    init: dict[str, Any] | None = None,
) -> TrainState:
    """Initialises the state on the mesh: every device computes only its own shards.

    Args:
      model, optimizer, config, mesh: what the state is for.
      seed: of the run; parameters and steps draw from its named streams.
      init: trained parameters; the top-level entries that the model has too (embeddings, layers, ...) are taken from
        there, its head among them: whoever has another task leaves that out.
    """
    abstract = abstract_state(model, optimizer, config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    given = {name: part for name, part in (init or {}).items() if name in abstract.params}

    def drawn(params: dict[str, Any]) -> dict[str, Any]:
        return {name: part for name, part in params.items() if name not in given}

    def initialise(key: jax.Array) -> TrainState:
        params = init_params(model, rngs.stream(key, "params"))
        opt_state = optimizer.init(trees.split(params, trainable(config, params))[0])
        zero = jnp.zeros((), jnp.int32)
        # What is given is not among the outputs: then XLA leaves out drawing it, which takes longer than all else.
        return TrainState(zero, zero, drawn(params), opt_state, rngs.stream(key, "train"))

    state = jax.jit(initialise, out_shardings=where.replace(params=drawn(where.params)))(jax.random.key(seed))
    # A step donates its state, and the caller's arrays must outlive that. `device_put` alone may share buffers.
    copies = jax.tree.map(jnp.copy, given)
    placed = jax.tree.map(sharding.place, copies, {name: where.params[name] for name in given})
    return state.replace(params=drawn(state.params) | placed)
