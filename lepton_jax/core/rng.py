"""Randomness by key: every use folds the run's one key with its own name, so that adding a use moves no other."""

from __future__ import annotations

import zlib

import jax


def stream(key: jax.Array, name: str, *counters: int | jax.Array) -> jax.Array:
    """Returns the key of a named stream, at the position that `counters` give (a step, a micro-batch, ...).

    Args:
      key: a typed key, shape [].
      name: the stream; its CRC-32 is folded in, so the key does not depend on Python's hash seed.
      *counters: integers, or int arrays of shape [], folded in after it in order.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
