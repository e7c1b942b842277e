"""Layer norm against autodiff in float64; dropout: how often, independently of neighbours and of the mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.core import sharding
from lepton_jax.models.layers import Dropout, layer_norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-6), ("bfloat16", 2e-2)])
def test_layer_norm_and_its_gradient_are_those_of_autodiff_in_float64(dtype, tolerance, bias):
    """Rows of another mean and spread each, one of them constant: its variance is 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 16)) * rng.uniform(0.1, 10, (3, 5, 1)) + rng.normal(size=(3, 5, 1))
    x[0, 0] = 2.0
    x = np.asarray(jnp.asarray(x, dtype), np.float64)
    scale, shift, weight = rng.normal(size=(3, 16)) + 1
    epsilon = 1e-2

    def reference(x, scale, shift):
        with jax.enable_x64():
            params = {"scale": jnp.asarray(scale)} | ({"bias": jnp.asarray(shift)} if bias else {})
            norm = nn.LayerNorm(epsilon, use_bias=bias, use_fast_variance=False, dtype=jnp.float64)
            value, pull = jax.vjp(lambda x, p: norm.apply({"params": p}, x), jnp.asarray(x), params)
            assert value.dtype == jnp.float64
            d_x, d_params = pull(jnp.broadcast_to(weight, value.shape))
            return jax.device_get((value, d_x, d_params))

    value, d_x, d_params = reference(x, scale, shift)
    arguments = (jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32), jnp.asarray(shift, jnp.float32))
    found, pull = jax.vjp(lambda x, s, b: layer_norm(epsilon, dtype, x, s, b if bias else None), *arguments)
    gradients = pull(jnp.broadcast_to(jnp.asarray(weight, dtype), found.shape))
    assert found.dtype == gradients[0].dtype == dtype and gradients[1].dtype == jnp.float32
    pairs = [(found, value), (gradients[0], d_x), (gradients[1], d_params["scale"])]
    for mine, exact in [*pairs, *([(gradients[2], d_params["bias"])] if bias else [])]:
        np.testing.assert_allclose(np.asarray(mine, np.float64), exact, atol=tolerance * np.abs(exact).max())


def drop(x, rate, seed=0, active=True):
    return Dropout(rate, active).apply({}, x, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("rate", [2**-16, 0.1, 0.5, 0.99])
def test_elements_are_dropped_at_the_rate_and_the_mean_stays(rate, width):
    shape = (400_000 // width, width)
    out = np.asarray(drop(jnp.full(shape, 3.0), rate))
    dropped, size = out == 0, out.size
    sigma = np.sqrt(rate * (1 - rate) / size)
    assert 0 < dropped.sum() < size and abs(dropped.mean() - rate) < 5 * sigma + 2**-17
    scale = 2**16 / (2**16 - round(rate * 2**16))
    np.testing.assert_allclose(out[~dropped], 3.0 * scale, rtol=1e-6)


def test_neighbours_are_dropped_independently():
    """The two that share a word of random bits, and those that do not, of one row and of one column."""
    rate, shape = 0.3, (512, 1024)
    dropped = np.asarray(drop(jnp.ones(shape), rate)) == 0
    pairs = {"one word": (dropped[:, ::2], dropped[:, 1::2]), "two words": (dropped[:, 1:-1:2], dropped[:, 2::2]),
             "rows": (dropped[:-1], dropped[1:]), "halves": (dropped[:, :512], dropped[:, 512:])}  # fmt: skip
    for name, (first, second) in pairs.items():
        both = rate**2
        assert abs((first & second).mean() - both) < 5 * np.sqrt(both * (1 - both) / first.size), name


def test_the_gradient_passes_what_was_kept():
    x = jax.random.normal(jax.random.key(1), (8, 9))
    out, gradient = drop(x, 0.4), jax.grad(lambda x: drop(x, 0.4).sum())(x)
    assert (np.asarray(gradient) == 0).any() and (np.asarray(gradient) != 0).any()
    np.testing.assert_allclose(out, gradient * x, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_key_decides_and_nothing_happens_when_it_is_off(dtype):
    x = jax.random.normal(jax.random.key(1), (8, 10)).astype(dtype)
    assert drop(x, 0.5).dtype == x.dtype
    np.testing.assert_array_equal(drop(x, 0.5), drop(x, 0.5))
    assert (np.asarray(drop(x, 0.5)) != np.asarray(drop(x, 0.5, seed=1))).any()
    for off in (drop(x, 0.5, active=False), drop(x, 0.0), drop(x, 2**-18)):
        np.testing.assert_array_equal(off, x)
    assert np.isfinite(np.asarray(drop(x, 1 - 1e-9), np.float32)).all()


def test_every_mesh_draws_the_same():
    x, mesh = jnp.ones((8, 4, 16)), sharding.make_mesh("data=2,sequence=2,tensor=2")
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "sequence", "tensor")))
    assert len(spread.sharding.device_set) == 8
    out = jax.jit(lambda x: drop(x, 0.5))(spread)
    assert len(out.sharding.device_set) == 8
    np.testing.assert_array_equal(out, drop(x, 0.5))
