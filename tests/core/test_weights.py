"""Int8 against slow integer references, and the forms that `dot` accepts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.core.weights import Int8, dot, lay_out, quantize, take


def normal(seed, shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def test_round_trip_is_within_half_a_scale():
    x = normal(0, (64, 48)) * jnp.exp(normal(1, (1, 48), 2.0))
    q = quantize(x, axis=-2)
    assert q.values.dtype == jnp.int8 and q.scale.shape == (1, 48)
    assert int(jnp.abs(q.values.astype(jnp.int32)).max()) == 127
    error = jnp.abs(q.dense() - x)
    assert float(error.max()) > 0, "the values are not representable exactly, or the test shows nothing"
    assert bool(jnp.all(error <= q.scale * (0.5 + 1e-5)))


@partial(jax.jit, static_argnums=1)  # each size is compiled: as one program, not one an operation
def round_trip(x, axis):
    q = quantize(x, axis)
    return q.dense(), q.scale


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(1e-30, 1e30), st.sampled_from([-1, -2]))
def test_round_trip_at_any_size_and_magnitude(rows, columns, magnitude, axis):
    x = np.asarray(normal(rows * 10 + columns, (rows, columns))) * np.float32(magnitude)
    dense, scale = jax.device_get(round_trip(x, axis))
    assert (np.abs(dense - x) <= scale * np.float32(0.5 + 1e-4)).all()


def test_zeros_have_scale_one():
    q = quantize(jnp.zeros((3, 2)), -1)
    np.testing.assert_array_equal(q.dense(), np.zeros((3, 2)))
    np.testing.assert_array_equal(q.scale, np.ones((3, 1)))


def test_int8_product_equals_the_slow_integer_reference():
    x, w = normal(0, (5, 32)), quantize(normal(1, (32, 7)), -2)
    rows = quantize(x, -1)
    integers = np.asarray(rows.values, np.int64) @ np.asarray(w.values, np.int64)
    expected = integers.astype(np.float32) * np.asarray(rows.scale) * np.asarray(w.scale)
    assert np.abs(np.asarray(dot(x, w)) - np.asarray(dot(x, w.dense()))).max() > 1e-4, "activations are rounded too"
    np.testing.assert_array_equal(dot(x, w), expected)


def test_int8_multiplies_int8_by_int8_into_int32():
    w = quantize(normal(1, (32, 7)), -2)
    text = jax.jit(dot).lower(jnp.ones((4, 32)), w).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 1
    assert "xi8>" in products[0] and "xi32>" in products[0] and "f32" not in products[0]


def test_rows_and_transpose_share_one_table():
    table = normal(0, (11, 6))
    q = quantize(table, -1)
    ids = jnp.asarray([[3, 3], [0, 10]])
    np.testing.assert_array_equal(take(q, ids), q.dense()[ids])
    np.testing.assert_array_equal(take(table, ids), table[ids])
    x = normal(1, (4, 6))
    np.testing.assert_array_equal(q.T.dense(), q.dense().T)
    assert dot(x, q.T).shape == (4, 11)
    np.testing.assert_allclose(dot(x, q.T), dot(x, table.T), atol=0.1)


def test_take_of_a_kernel_uses_its_column_scales():
    q = quantize(normal(0, (11, 6)), -2)
    np.testing.assert_array_equal(take(q, jnp.asarray([2, 5])), q.dense()[jnp.asarray([2, 5])])


def test_scales_along_the_sum_are_refused():
    with pytest.raises(ValueError, match="one entry an output channel"):
        dot(jnp.ones((2, 6)), quantize(normal(0, (6, 4)), -1))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 2, 3, 8)])
def test_dot_flattens_any_leading_axes(shape):
    x, w, bias = normal(0, shape), normal(1, (8, 5)), normal(2, (5,))
    np.testing.assert_allclose(dot(x, w, bias), np.asarray(x) @ np.asarray(w) + np.asarray(bias), rtol=1e-5, atol=1e-5)


def test_dot_computes_in_the_dtype_of_x():
    assert dot(jnp.ones((2, 4), jnp.bfloat16), jnp.ones((4, 3)), jnp.ones(3)).dtype == jnp.bfloat16
    assert dot(jnp.ones((2, 4), jnp.bfloat16), quantize(jnp.ones((4, 3)), -2)).dtype == jnp.bfloat16


def test_a_stack_of_layers_is_sliced_like_any_pytree():
    stacked = quantize(normal(0, (3, 8, 5)), -2)
    x = normal(1, (2, 8))
    _, products = jax.lax.scan(lambda carry, w: (carry, dot(x, w)), 0, stacked)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        assert isinstance(one, Int8) and one.shape == (8, 5)
        np.testing.assert_array_equal(products[layer], dot(x, one))


def test_one_row_is_multiplied_in_int8_too():
    """XLA's CPU programs widen all of a matrix that one row is multiplied by."""
    w = quantize(jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32), axis=-2)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 64)), jnp.float32)
    (product,) = re.findall(r"dot_general.*", jax.jit(dot).lower(x[:1], w).as_text())
    assert "(tensor<2x64xi8>, tensor<64x32xi8>) -> tensor<2x32xi32>" in product
    np.testing.assert_array_equal(dot(x[:1], w), dot(x, w)[:1])


@pytest.mark.parametrize("rows", [1, 5])
def test_a_transposed_kernel_is_the_same_matrix(rows):
    rng = np.random.default_rng(0)
    w = quantize(jnp.asarray(rng.normal(size=(64, 32)), jnp.float32), axis=-2)
    table = quantize(jnp.asarray(rng.normal(size=(9, 64)), jnp.float32), axis=-1)
    found = lay_out({"kernel": w, "table": table, "bias": jnp.zeros(3)})
    turned = found["kernel"]
    assert turned.values.shape == (32, 64) and turned.shape == w.shape == (64, 32)
    assert found["table"].values is table.values and not found["table"].transposed
    x = jnp.asarray(rng.normal(size=(rows, 64)), jnp.float32)
    np.testing.assert_array_equal(dot(x, turned), dot(x, w))
    np.testing.assert_array_equal(turned.dense(), w.dense())
    np.testing.assert_array_equal(take(turned, jnp.array([3, 0])), take(w, jnp.array([3, 0])))
    (product,) = re.findall(r"dot_general.*", jax.jit(dot).lower(x, turned).as_text())
    assert "contracting_dims = [1] x [1]" in product and "transpose" not in jax.jit(dot).lower(x, turned).as_text()
    np.testing.assert_array_equal(dot(x, table.T), dot(x, quantize(table.dense().T, axis=-2)))
    assert table.T.transposed and not table.T.T.transposed
    stack = lay_out(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), w))
    assert stack.shape == (2, 64, 32) and stack.values.shape == (2, 32, 64)
