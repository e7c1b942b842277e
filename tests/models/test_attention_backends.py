"""Every backend against attention in float64 NumPy, one row and one head at a time.

The kernels of GPUs and TPUs are interpreted; of cuDNN, which runs on its GPUs alone, the lowered program is read.
"""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import ModelConfig, TaskConfig
from lepton_jax.core import sharding
from lepton_jax.models import backends
from lepton_jax.models.attention import attention
from lepton_jax.models.backends import BACKENDS
from lepton_jax.models.backends.case import Case, Inputs
from lepton_jax.models.transformer import Transformer, abstract_params, init_params, unstack
from lepton_jax.tasks.masked_lm import MaskedLM

B, H, K = 3, 2, 8
SEGMENTS = {
    "full": [[(1, 1.0)]] * 3,
    "padded": [[(1, 0.7)], [(1, 1.0)], []],  # the last row is padding alone
    "packed": [[(1, 0.4), (2, 0.3)], [(1, 0.2), (2, 0.2), (3, 0.6)], []],
}


def make_segments(rows, T):
    """Returns int32 [B, T]: shares of a row, the rest is padding."""
    segments = np.zeros((B, T), np.int32)
    for row, parts in zip(segments, SEGMENTS[rows], strict=True):
        start = 0
        for number, share in parts:
            end = start + round(share * T)
            row[start:end], start = number, end
    return segments


def make_inputs(T, rows="packed", seed=0, bias=False):
    """Returns q, k, v, the gradient of the output (0 at padding, as in a model), segments and bias or None."""
    draw = np.random.default_rng(seed)
    segments = make_segments(rows, T)
    q, k, v, d_out = (draw.normal(size=(B, T, H, K)) for _ in range(4))
    d_out *= segments[:, :, None, None] > 0
    return q, k, v, d_out, segments, draw.normal(size=(B, H, T, T)) if bias else None


def reference(q, k, v, d_out, segments, bias, causal=False, window=None, scale=None):
    """Returns (output, gradients of q, k, v and bias), float64; the output at padding is 0."""
    out, *grads = (np.zeros_like(q) for _ in range(4))
    d_bias = np.zeros((B, H, q.shape[1], q.shape[1]))
    scale = 1 / math.sqrt(K) if scale is None else scale
    distance = np.subtract.outer(np.arange(q.shape[1]), np.arange(q.shape[1]))
    for row, head in itertools.product(range(B), range(H)):
        real = np.flatnonzero(segments[row])
        seen = segments[row, real][:, None] == segments[row, real][None, :]
        seen &= (distance[np.ix_(real, real)] >= 0) | (not causal)
        seen &= (abs(distance[np.ix_(real, real)]) <= window) if window is not None else True
        q1, k1, v1, d1 = (x[row, real, head] for x in (q, k, v, d_out))
        logits = q1 @ k1.T * scale + (0 if bias is None else bias[row, head][np.ix_(real, real)])
        weights = np.exp(logits) * seen
        weights /= weights.sum(-1, keepdims=True)
        d_weights = d1 @ v1.T
        d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
        out[row, real, head] = weights @ v1
        for grad, value in zip(grads, (d_logits @ k1 * scale, d_logits.T @ q1 * scale, weights.T @ d1), strict=True):
            grad[row, real, head] = value
        d_bias[row, head][np.ix_(real, real)] = d_logits
    return out, grads, d_bias


def run(name, q, k, v, d_out, segments, bias=None, dtype=jnp.float32, mesh=None, **options):
    """Returns (output, gradients of q, k, v and, if there is one, of the bias) of a backend; int8 has no gradients."""
    arrays = [jnp.asarray(x, dtype) for x in (q, k, v)] + ([] if bias is None else [jnp.asarray(bias, jnp.float32)])
    segments = jnp.asarray(segments)
    fn, arguments = attention, {"backend": name, "mesh": mesh, **options}
    if name in DEVICES:  # as the door calls it where its device is
        scale = options.pop("scale", 1 / math.sqrt(K))
        case = Case(length=q.shape[1], head_size=K, dtype=arrays[0].dtype.name, **DEVICES[name], **options)
        assert BACKENDS[name].refuses(case) is None
        fn, arguments = (
            lambda *inputs, **more: backends.attend(name, case, mesh, Inputs(*inputs), **more),
            {"scale": scale, "interpret": True},
        )

    @jax.jit
    def both(arrays, d_out):
        def call(q, k, v, bias=None):
            return fn(q, k, v, segments, **arguments, **({} if bias is None else {"bias_BxHxTxT": bias}))

        if name == "int8":
            return call(*arrays), ()
        out, pull = jax.vjp(call, *arrays)
        return out, pull(d_out)

    return both(arrays, jnp.asarray(d_out, dtype))


DEVICES = {  # where kernels run that are interpreted here
    "triton": {"platform": "gpu", "capability": 9.0},
    "splash": {"platform": "tpu"},
}
CASES = {
    "xla": [
        {"rows": rows, "causal": causal, "window": window}
        for rows in SEGMENTS
        for causal, window in ((False, None), (True, None), (False, 5), (True, 1))
    ],
    "banded": [
        {"rows": "full", "window": 3},
        {"rows": "packed", "window": 0},
        {"rows": "packed", "window": 70},
        {"rows": "padded", "window": 5, "causal": True},
    ],
    "triton": [{"rows": "packed"}, {"rows": "full", "causal": True}],
    "splash": [
        {"rows": "packed"},
        {"rows": "full", "causal": True},
        {"rows": "padded", "window": 5},
        {"rows": "packed", "window": 9, "causal": True},
    ],
    "int8": [
        {"rows": "packed"},
        {"rows": "full", "causal": True},
        {"rows": "padded", "window": 5},
        {"rows": "packed", "window": 1, "causal": True},
        {"rows": "padded"},
    ],
}
LENGTHS = {"xla": 24, "banded": 200, "triton": 256, "splash": 256, "int8": 24}  # of several blocks
ONE_EACH = [("xla", None), ("xla", 5), ("banded", 5), ("triton", None), ("splash", None), ("splash", 5),
            ("int8", None), ("int8", 5)]  # fmt: skip
ERROR = {"int8": 0.06}  # of outputs, where it is more than 1e-5


def all_cases():
    return [pytest.param(name, case, id=f"{name}-{'-'.join(map(str, case.values()))}")
            for name, cases in CASES.items() for case in cases]  # fmt: skip


@pytest.mark.parametrize(("name", "case"), all_cases())
def test_outputs_and_gradients_equal_the_reference(name, case):
    inputs = make_inputs(LENGTHS[name], case["rows"])
    segments = inputs[4]
    expected, expected_grads, _ = reference(*inputs, case.get("causal", False), case.get("window"))
    out, grads = run(name, *inputs, **case)
    real = segments > 0
    np.testing.assert_allclose(out[real], expected[real], atol=ERROR.get(name, 1e-5))
    assert np.isfinite(out).all()
    if name in DEVICES:
        np.testing.assert_array_equal(out[~real], 0.0)
    for grad, wanted in zip(grads, () if name == "int8" else expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)
        np.testing.assert_array_equal(grad[~real], 0.0)  # padding changes nothing


def test_the_cases_differ():
    for name, cases in CASES.items():
        outs = [reference(*make_inputs(LENGTHS[name], case["rows"]), case.get("causal", False), case.get("window"))[0]
                for case in cases]  # fmt: skip
        least = 5 * ERROR.get(name, 1e-4)
        assert all(np.abs(a - b).max() > least for a, b in itertools.combinations(outs, 2))


def test_the_bias_and_the_scale_have_their_share():
    inputs = make_inputs(24, bias=True)
    expected, expected_grads, d_bias = reference(*inputs, scale=0.7)
    plain = reference(*inputs[:5], None)[0]
    assert np.abs(expected - plain).max() > 0.1
    out, (*grads, grad_of_bias) = run("xla", *inputs, scale=0.7)
    real = inputs[4] > 0
    np.testing.assert_allclose(out[real], expected[real], atol=1e-5)
    for grad, wanted in zip((*grads, grad_of_bias), (*expected_grads, d_bias), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)


@pytest.mark.parametrize(("name", "window"), [ONE_EACH[index] for index in (0, 2, 3, 4)])
def test_half_precision_is_near(name, window):
    inputs = make_inputs(LENGTHS[name])
    expected, expected_grads, _ = reference(*inputs, window=window)
    out, grads = run(name, *inputs, dtype=jnp.bfloat16, window=window)
    real = inputs[4] > 0
    assert out.dtype == jnp.bfloat16 and {grad.dtype for grad in grads} == {jnp.dtype(jnp.bfloat16)}
    for found, wanted in ((out[real], expected[real]), *zip(grads, expected_grads, strict=True)):
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.05)


@pytest.mark.parametrize(("name", "window"), ONE_EACH)
def test_documents_of_a_row_never_see_each_other(name, window):
    """Bit for bit, forward and backward, whatever is in the other document."""
    inputs = make_inputs(LENGTHS[name])
    segments = inputs[4]
    first, second = (segments[0] == number for number in (1, 2))
    changed = [x.copy() for x in inputs[:4]]
    for x in changed:
        x[0, first] *= 3
    before, grads_before = run(name, *inputs, window=window)
    after, grads_after = run(name, *changed, *inputs[4:], window=window)
    assert np.abs(before - after)[0, first].max() > 0.1
    np.testing.assert_array_equal(before[0, second], after[0, second])
    for grad, other in zip(grads_before, grads_after, strict=True):
        assert np.abs(grad - other)[0, first].max() > 0.1
        np.testing.assert_array_equal(grad[0, second], other[0, second])


@pytest.mark.parametrize(("name", "T"), [("xla", 24), ("banded", 200), ("splash", 128), ("int8", 24)])
def test_devices_share_rows_and_heads(name, T):
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    inputs = [np.concatenate([x, x[:1]]) for x in make_inputs(T)[:5]]  # four rows
    inputs[0][3] *= -1
    one, grads = run(name, *inputs, window=5)
    other, other_grads = run(name, *inputs, mesh=mesh, window=5)
    assert len(one.sharding.device_set) == 1 and len(other.sharding.device_set) == 8
    np.testing.assert_allclose(other, one, atol=5e-6)
    for grad, wanted in zip(other_grads, grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "call", "operands"),
    [
        ({"rows": "full"}, "fmhaSoftmax", 0),
        ({"rows": "full", "causal": True}, "fmhaSoftmax", 0),
        ({"rows": "padded"}, "fmhaSoftmax", 2),  # lengths of queries and keys
        ({"rows": "packed"}, "fmhaScaleBiasSoftmax", 1),  # the mask
        ({"rows": "padded", "window": 5}, "fmhaScaleBiasSoftmax", 1),
    ],
)
def test_cudnn_is_called_forward_and_backward(monkeypatch, changes, call, operands):
    import jax._src.cudnn.fused_attention_stablehlo as fused

    # What it asks of a GPU, which is not here.
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91600)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    case = Case("gpu", 128, 64, "bfloat16", capability=9.0, **changes)
    assert backends.choose(case) == "cudnn"
    shapes = [jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)] * 4

    def both(q, k, v, d_out, segments):
        def attend(*qkv):
            return backends.attend("cudnn", case, None, Inputs(*qkv, segments), scale=0.1)

        return jax.vjp(attend, q, k, v)[1](d_out)

    traced = jax.jit(both).trace(*shapes, jax.ShapeDtypeStruct((2, 128), jnp.int32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @__cudnn\$(\w+)\((.*?)\)", text)
    assert [name for name, _ in calls] == [call, f"{call}Backward"]
    _, _, _, *others = calls[0][1].replace(" ", "").split(",")
    assert len(others) == operands and len(set(others)) == min(operands, 1)


def test_a_window_that_may_hold_is_the_one_or_the_other():
    q, k, v, _, segments, _ = (None if x is None else jnp.asarray(x, jnp.float32) for x in make_inputs(200))
    segments = segments.astype(jnp.int32)

    def maybe(local, backend):
        return attention(q, k, v, segments, window=5, local=local, backend=backend)

    near, far = attention(q, k, v, segments, window=5), attention(q, k, v, segments)
    assert float(jnp.abs(near - far).max()) > 0.1
    for backend in ("xla", "banded"):
        decided = jax.jit(maybe, static_argnums=1)
        text = decided.lower(True, backend).as_text()
        assert ("stablehlo.case" in text) == (backend == "banded")
        for wanted, flag in ((near, True), (far, False)):
            for local in (flag, jnp.asarray(flag)):
                np.testing.assert_allclose(decided(local, backend), wanted, atol=1e-6)
            np.testing.assert_allclose(maybe(flag, backend), wanted, atol=1e-6)


def temporaries(name, T):
    """Returns the bytes that forward and backward pass need at once besides inputs and outputs."""
    shapes = [jax.ShapeDtypeStruct((1, T, H, K), jnp.float32)] * 4

    def both(q, k, v, d_out):
        segments = jnp.ones((1, T), jnp.int32)
        return jax.vjp(lambda *qkv: attention(*qkv, segments, window=16, backend=name), q, k, v)[1](d_out)

    return jax.jit(both).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_blocks_grows_with_the_length_and_not_with_its_square():
    growth = {name: temporaries(name, 2048) / temporaries(name, 512) for name in ("xla", "banded")}
    assert growth["xla"] > 9 and growth["banded"] < 5


def test_layers_beside_blocks_keep_no_weights():
    T = 1024

    def temporaries(depth, backend):
        config = dataclasses.replace(ALTERNATING, num_layers=depth, max_positions=T, attention=backend)
        model = Transformer(config)
        ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
        gradient = jax.grad(lambda params, ids: model.apply({"params": params}, ids)["hidden"].std())
        return jax.jit(gradient).lower(abstract_params(model), ids).compile().memory_analysis().temp_size_in_bytes

    weights = ALTERNATING.num_heads * T * T * 4
    layer = {name: (temporaries(4, name) - temporaries(2, name)) / 2 for name in ("xla", "auto")}
    assert layer["xla"] > weights > 2 * layer["auto"]


ALTERNATING = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=16, max_positions=160,
    initializer_range=0.2, global_every=2, local_window=4, attention="xla",
)  # fmt: skip


def test_a_model_of_local_and_global_layers_has_one_loss_on_both():
    draw = np.random.default_rng(0)
    T = 160
    segments = make_segments("packed", T)
    batch = {
        "token_ids": jnp.asarray(draw.integers(5, 64, (B, T)), jnp.int32),
        "attention_mask": jnp.asarray(segments),
        "positions": jnp.asarray(np.arange(T)[None, :] * (segments > 0), jnp.int32),
        "weight": jnp.ones(B),
    }
    task = MaskedLM(TaskConfig(), 64, 4, (0, 1, 2, 3, 4))

    params = init_params(Transformer(ALTERNATING, "masked_lm"), jax.random.key(0))

    def compiled(params, transform, **changes):
        """Returns (text of the program, what it gives)."""
        model = Transformer(dataclasses.replace(ALTERNATING, **changes), "masked_lm")
        fn = transform(lambda params: task.loss(model, params, batch, jax.random.key(1), train=False)[0])
        lowered = jax.jit(fn).lower(params)
        return lowered.as_text(), lowered.compile()(params)

    masks, (loss, gradient) = compiled(params, jax.value_and_grad)
    blocks, (other, other_gradient) = compiled(params, jax.value_and_grad, attention="banded")
    assert "stablehlo.case" in blocks and "stablehlo.case" not in masks
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other_gradient, gradient)
    apart, found = compiled(unstack(params), lambda fn: fn, attention="banded")  # each layer's kind is known
    assert "stablehlo.case" not in apart
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    assert abs(compiled(params, lambda fn: fn, global_every=1)[1] - loss) > 1e-4
