"""What a layer's inputs were, in numbers that add up over batches: the magnitudes of each channel.

`models.layers.Linear` puts them into the collection "inputs" where a caller asks for it (`mutable=["inputs"]`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Magnitudes are counted in bins of an eighth of an octave, from 2^-12 to 2^12; what lies outside is in the outer ones.
_LOWEST, _OCTAVES, _PER_OCTAVE = -12, 24, 8
EDGES = 2.0 ** (_LOWEST + np.arange(_OCTAVES * _PER_OCTAVE + 1) / _PER_OCTAVE)  # [bins + 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """The magnitudes of inputs of K channels; a leading axis stacks layers."""

    largest: Float[Array, "... K"]
    counts: Float[Array, "... K bins"]  # how many lie between two `EDGES`

    @staticmethod
    def add(first: Seen | None, second: Seen) -> Seen:
        """Returns what was seen in either; None is nothing."""
        if first is None:
            return second
        return Seen(jnp.maximum(first.largest, second.largest), first.counts + second.counts)

    def flat(self, shape: tuple[int, ...]) -> Seen:
        """Returns what was seen by each kernel of a stack `[*shape, K, N]`: of layers that share one, all of it."""
        extra = tuple(range(len(shape), self.largest.ndim - 1))
        return Seen(jnp.max(self.largest, axis=extra), jnp.sum(self.counts, axis=extra))


def observe(x: Float[Array, "... K"]) -> Seen:
    """Returns the magnitudes of inputs."""
    rows = jnp.abs(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
    bins = jnp.floor((jnp.log2(rows) - _LOWEST) * _PER_OCTAVE)
    bins = jnp.clip(bins, 0, len(EDGES) - 2).astype(jnp.int32)
    channels = jnp.broadcast_to(jnp.arange(rows.shape[1])[None, :], rows.shape)
    counts = jnp.zeros((rows.shape[1], len(EDGES) - 1), jnp.float32).at[channels, bins].add(1.0)
    return Seen(jnp.max(rows, axis=0), counts)
