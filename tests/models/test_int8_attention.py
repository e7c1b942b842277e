"""Attention by int8 products: its integers against int64, what is refused, and what it does to a model.

Its outputs beside float64, and that documents of a row never see each other, are in `test_attention_backends`.
"""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
from lepton_jax.models.attention import attention
from lepton_jax.models.backends import int8
from lepton_jax.models.transformer import Transformer, init_params

B, T, H, K = 2, 24, 3, 16


def draw(seed=0, shape=(B, T, H, K)):
    """Returns q, k, v; a head's values differ in size from token to token."""
    generator = np.random.default_rng(seed)
    q, k, v = (generator.normal(size=shape).astype(np.float32) for _ in range(3))
    return 2 * q, k, v * np.exp(generator.normal(size=(*shape[:3], 1))).astype(np.float32)


def test_products_are_those_of_int64():
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-127, 128, (B, H, 8, 300)).astype(np.int8) for _ in range(2))
    a[0, 0, 0] = b[0, 0, 0] = 127  # the largest sum
    wide = a.astype(np.int64), b.astype(np.int64)
    for fn, other, expected in (
        (lambda a, b: int8.products(a, b, 2), b, np.einsum("bhtn,bhmn->bhtm", *wide)),
        (lambda a, b: int8.products(a, b, 1), b.swapaxes(2, 3), np.einsum("bhtn,bhmn->bhtm", *wide)),
    ):
        found = jax.jit(fn)(a, other)
        assert found.dtype == jnp.int32 and expected.max() == 300 * 127**2
        np.testing.assert_array_equal(found, expected)


def test_each_token_is_rounded_by_its_own_largest_value():
    v = draw()[2].swapaxes(1, 2)
    v[0, 0, 3] = 0
    values, scale = map(np.asarray, jax.jit(int8.rounded)(v))
    assert values.dtype == np.int8 and scale.shape == (B, H, T, 1)
    largest = np.abs(values).max(-1)
    assert largest[0, 0, 3] == 0 and (np.delete(largest.ravel(), 3) == 127).all()
    assert (np.abs(values * scale.astype(np.float64) - v) <= scale * (0.5 + 1e-5)).all()


def slow(q, k, v, seen, scale):
    """Returns (logits, weights, output) [H, T, ...] of one row: integers in int64, the rest in float64."""
    (q8, of_q), (k8, of_k), (v8, of_v) = (map(np.asarray, int8.rounded(x.swapaxes(0, 1)[None])) for x in (q, k, v))
    q8, k8, v8 = (x[0].astype(np.int64) for x in (q8, k8, v8))
    of_q, of_k, of_v = (x[0, :, :, 0].astype(np.float64) for x in (of_q, of_k, of_v))
    logits = (q8 @ k8.swapaxes(1, 2)) * of_q[:, :, None] * of_k[:, None, :] * scale
    parts = np.exp(logits - logits.max(-1, keepdims=True)) * seen
    exact = parts * of_v[:, None, :]
    exact /= exact.max(-1, keepdims=True)
    weights = np.rint(127 * exact).astype(np.int64)
    return logits, 127 * exact, (weights @ v8) / (127 * np.sum(exact / of_v[:, None, :], axis=-1, keepdims=True))


def test_the_whole_is_the_slow_path():
    q, k, v = draw()
    lengths = np.asarray([T, 17])
    segments = (np.arange(T)[None, :] < lengths[:, None]).astype(np.int32)
    out = jax.jit(lambda *x: attention(*x, segments, rows="padded", scale=0.3, backend="int8"))(q, k, v)
    plain = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(segments), rows="padded", scale=0.3)
    for row, length in enumerate(lengths):
        wanted = slow(q[row], k[row], v[row], segments[row] > 0, 0.3)[2].swapaxes(0, 1)[:length]
        # Where float32 is on the other side of a half, one weight of a sum is another one.
        assert np.mean(np.abs(out[row, :length] - wanted) > 1e-5) < 0.05
        assert np.mean(np.abs(plain[row, :length] - wanted) > 1e-5) > 0.9  # rounding shows


def test_weights_fill_int8_whatever_the_sizes_of_values():
    q, k, v = draw()
    seen = np.tril(np.ones((T, T), bool))
    logits, exact, _ = slow(q[0], k[0], v[0], seen, 0.25)
    of_v = int8.rounded(v[:1].swapaxes(1, 2))[1].swapaxes(2, 3)
    weights, total = jax.jit(int8.weigh)(logits[None].astype(np.float32), of_v, seen[None, None])
    assert weights.dtype == jnp.int8 and (np.asarray(weights).max(-1) == 127).all()
    assert (np.abs(weights[0] - exact) <= 0.5 + 1e-3).all()
    assert (np.asarray(weights)[0, :, ~seen] == 0).all() and not (exact[:, ~seen] != 0).any()
    np.testing.assert_allclose(total[0], np.sum(exact / of_v[0], axis=-1, keepdims=True), rtol=1e-5)


def test_a_value_of_zeros_leaves_the_others_their_weights():
    """Its own scale says nothing; it counts in the softmax and adds nothing."""
    q, k, v = (x[:1, :, :1] for x in draw())
    v = 1e-3 * v
    v[0, 5] = 0
    segments = np.ones((1, T), np.int32)
    exact = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(segments), rows="full")
    found = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(segments), rows="full", backend="int8")
    without = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(segments * (np.arange(T) != 5)[None]))
    error = np.abs(found - exact).max()
    assert error < 0.05 * np.abs(exact).max() and np.abs(without - exact).max() > 2 * error


def test_what_is_not_seen_changes_nothing():
    """Later tokens and padding, bit for bit."""
    q, k, v = draw()
    other = [np.where(np.arange(T)[None, :, None, None] < 10, x, -3 * x) for x in (q, k, v)]
    ones, ten = np.ones((B, T), np.int32), np.tile(np.arange(T) < 10, (B, 1)).astype(np.int32)
    for options in ({"segments_BxT": ones, "causal": True}, {"segments_BxT": ten, "rows": "padded"}):
        fn = jax.jit(lambda *x, options=options: attention(*x, **options, backend="int8"))
        one, two = fn(q, k, v), fn(*other)
        np.testing.assert_array_equal(one[:, :10], two[:, :10])
        assert np.abs(one - two)[:, 10:].max() > 0.1


def test_half_precision_comes_back():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw())
    segments = jnp.ones((B, T), jnp.int32)
    out, wanted = (attention(q, k, v, segments, backend=name) for name in ("int8", "xla"))
    assert out.dtype == jnp.bfloat16 and (out != wanted).any()
    assert np.abs((out - wanted).astype(jnp.float32)).mean() < 0.03 * np.abs(wanted.astype(jnp.float32)).mean()


def test_a_window_that_may_hold_is_the_one_or_the_other():
    q, k, v = map(jnp.asarray, draw())
    segments = jnp.ones((B, T), jnp.int32)
    decided = jax.jit(lambda local: attention(q, k, v, segments, window=2, local=local, backend="int8"))
    near = attention(q, k, v, segments, window=2, backend="int8")
    far = attention(q, k, v, segments, backend="int8")
    assert np.abs(near - far).max() > 0.1
    np.testing.assert_allclose(decided(True), near, atol=1e-6)
    np.testing.assert_allclose(decided(False), far, atol=1e-6)


def test_products_are_not_widened():
    """XLA multiplies int8 by int8 only in some layouts, and else converts both to int32 first."""
    shape = jax.ShapeDtypeStruct((4, 128, 12, 32), jnp.float32)
    fn = jax.jit(lambda q, k, v: attention(q, k, v, jnp.ones((4, 128), jnp.int32), backend="int8"))
    text = fn.lower(shape, shape, shape).compile().as_text()
    assert len(re.findall(r" = s32\[12,128,(?:32|128)\]\S* dot\(", text)) == 2
    assert not re.search(r" = s32\[[\d,]*\]\S* convert\(", text)


def test_a_model_predicts_and_is_not_differentiated():
    config = ModelConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32,
                         initializer_range=0.3, max_positions=16)  # fmt: skip
    params = init_params(Transformer(config), jax.random.key(0))
    ids = jnp.arange(5, 21, dtype=jnp.int32)[None]

    def spread(backend, params):
        model = Transformer(dataclasses.replace(config, attention=backend))
        return model.apply({"params": params}, ids)["hidden"].std()

    one, other = (float(jax.jit(partial(spread, backend))(params)) for backend in ("auto", "int8"))
    assert one != other and abs(one - other) < 0.05 * one
    for transform in (jax.grad, lambda fn: lambda x: jax.jvp(fn, (x,), (x,))):
        jax.eval_shape(transform(partial(spread, "auto")), params)
        with pytest.raises(UserError, match="it is for predictions, and has no gradient"):
            jax.eval_shape(transform(partial(spread, "int8")), params)
