"""Named streams."""

import jax
import numpy as np

from lepton_jax.core.rng import stream


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_by_name_and_by_counter():
    key = jax.random.key(0)
    keys = [
        stream(key, "mask"),
        stream(key, "dropout"),
        stream(key, "mask", 0),
        stream(key, "mask", 1),
        stream(key, "mask", 0, 1),
    ]
    assert len({bits(key) for key in keys}) == len(keys)
