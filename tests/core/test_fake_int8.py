"""A weight in training multiplies as the int8 that it becomes, and its gradients are those written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core.fake_int8 import FakeInt8
from lepton_jax.core.weights import Int8, dot, quantize, take

FORMS = {
    "dynamic": (False, False),
    "dynamic, smoothed": (False, True),
    "static": (True, False),
    "static, smoothed": (True, True),
}


def normal(seed, shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def setup(form, rows=23, size=32, columns=17):
    """Returns inputs with outliers in a channel, a matrix, and the step and smoothing factors of a form."""
    x, w = normal(0, (rows, size)), normal(1, (size, columns), 0.1)
    x[:, 3] *= 20
    static, smoothed = FORMS[form]
    smooth = np.exp(normal(2, (size, 1))) if smoothed else None
    scaled = np.abs(x if smooth is None else x / smooth.T)
    step = np.full((1, 1), np.percentile(scaled, 97) / 127, np.float32) if static else None
    return x, w, step, smooth


def by_hand(x, w, step, smooth, gradient):
    """Returns, in float64, x @ w of what both are rounded to, and the gradients by x and w straight through that."""
    x, w = (np.asarray(each, np.float64) for each in (x, w))
    factors = np.ones((x.shape[1], 1)) if smooth is None else np.asarray(smooth, np.float64)
    scaled, raised = x / factors.T, w * factors
    column = np.abs(raised).max(0, keepdims=True) / 127
    row = np.abs(scaled).max(1, keepdims=True) / 127 if step is None else float(step[0, 0])
    rounded_x, rounded_w = np.clip(np.rint(scaled / row), -127, 127) * row, np.rint(raised / column) * column
    kept = np.abs(scaled / row) < 127 + 1e-9 if step is None else np.abs(scaled / row) < 127
    return (
        rounded_x @ rounded_w,
        (gradient @ rounded_w.T) / factors.T * kept,
        (rounded_x.T @ gradient) * factors,
        kept,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_is_bit_for_bit_that_of_int8(form, dtype):
    x, w, step, smooth = setup(form)
    x = jnp.asarray(x, dtype)
    values = quantize(jnp.asarray(w if smooth is None else w * smooth), -2)
    int8 = Int8(values.values, values.scale, step, smooth)
    fake = FakeInt8(jnp.asarray(w), step, smooth)
    assert float(jnp.abs(int8.dot(x) - x @ w.astype(dtype)).max()) > 0.01, "rounding must be visible"
    assert fake.dot(x).dtype == dtype
    np.testing.assert_array_equal(fake.dot(x), int8.dot(x))
    np.testing.assert_array_equal(jax.jit(dot)(x, fake), jax.jit(dot)(x, int8))
    np.testing.assert_array_equal(fake.dense(), int8.dense())
    assert fake.shape == int8.shape


@pytest.mark.parametrize("form", FORMS)
def test_gradients_go_straight_through_the_rounding(form):
    x, w, step, smooth = setup(form)
    gradient = normal(3, (x.shape[0], w.shape[1]))

    @jax.jit
    def pull(x, fake):
        product, back = jax.vjp(dot, x, fake)
        return product, back(gradient)

    product, (d_x, d_fake) = pull(x, FakeInt8(jnp.asarray(w), step, smooth))
    exact, wanted_x, wanted_w, kept = by_hand(x, w, step, smooth, gradient)
    assert kept.all() == (step is None) and kept.any(), "a step clips some inputs, and dynamic rounding none"
    plain = np.abs(wanted_x - gradient @ w.T).max() / np.abs(wanted_x).max()
    assert plain > 1e-3, "the gradient is that at the rounded weights"
    for found, wanted in ((product, exact), (d_x, wanted_x), (d_fake.original, wanted_w)):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    assert np.array_equal(np.asarray(d_x) == 0, ~kept)
    for constant in (d_fake.step, d_fake.smooth):
        assert constant is None or not np.any(constant), "what was calibrated is no parameter"


def test_rows_of_a_table_are_rounded_and_so_is_its_transpose():
    table, ids = jnp.asarray(normal(0, (11, 6))), jnp.asarray([[3, 3], [0, 10]])
    fake, int8 = FakeInt8(table, axis=-1), quantize(table, -1)
    assert np.abs(take(fake, ids) - table[ids]).max() > 1e-4
    np.testing.assert_array_equal(take(fake, ids), take(int8, ids))
    np.testing.assert_array_equal(fake.dense(), int8.dense())
    np.testing.assert_array_equal(fake.T.dense(), int8.dense().T)
    x = jnp.asarray(normal(1, (4, 6)))
    np.testing.assert_array_equal(dot(x, fake.T), dot(x, int8.T))
    kernel = FakeInt8(table)
    np.testing.assert_array_equal(take(kernel, ids), take(quantize(table, -2), ids))
    assert (kernel.T.axis, kernel.T.T.axis, fake.T.shape) == (-1, -2, (6, 11))
    d_table = jax.grad(lambda table: jnp.sum(take(FakeInt8(table, axis=-1), ids) * jnp.arange(1.0, 7)[None, None]))(
        table
    )
    expected = np.zeros((11, 6))
    for row, count in ((3, 2), (0, 1), (10, 1)):
        expected[row] = count * np.arange(1, 7)
    np.testing.assert_allclose(d_table, expected, rtol=1e-6)


def test_zeros_stay_zeros_and_have_gradients():
    x, w = jnp.zeros((2, 4)), jnp.ones((4, 3))
    d_x, d_w = jax.grad(lambda x, w: jnp.sum(dot(x, FakeInt8(w))), (0, 1))(x, w)
    np.testing.assert_allclose(d_x, np.full((2, 4), 3.0), rtol=1e-6)
    assert np.isfinite(d_w).all() and not np.any(dot(x, FakeInt8(w)))


def test_what_int8_refuses_is_refused():
    with pytest.raises(ValueError, match="one scale an output channel"):
        dot(jnp.ones((2, 6)), FakeInt8(jnp.ones((6, 4)), axis=-1))
    with pytest.raises(ValueError, match="calibrated"):
        _ = FakeInt8(jnp.ones((6, 4)), jnp.ones((1, 1))).T


def test_a_stack_of_layers_is_sliced_and_trained_like_any_pytree():
    x, stack = jnp.asarray(normal(0, (5, 8))), jnp.asarray(normal(1, (3, 8, 8), 0.3))
    steps = jnp.asarray([[[0.01]], [[0.02]], [[0.03]]])

    def scanned(stack):
        return jnp.sum(jax.lax.scan(lambda x, w: (dot(x, w), None), x, FakeInt8(stack, steps))[0] ** 2)

    def unrolled(stack):
        out = x
        for layer in range(3):
            out = dot(out, FakeInt8(stack[layer], steps[layer]))
        return jnp.sum(out**2)

    (value, grads), (wanted, expected) = (jax.jit(jax.value_and_grad(each))(stack) for each in (scanned, unrolled))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(grads, expected, atol=1e-5 * np.abs(expected).max())
    assert all(np.any(layer) for layer in np.asarray(grads))
