"""A model in quantisation-aware training is, in its forward pass, the int8 model that is made of it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.compress import Inputs, calibrate, fake_int8, quantize_int8, see_inputs
from lepton_jax.core import trees
from lepton_jax.core.fake_int8 import FakeInt8
from lepton_jax.core.weights import Int8, Weight

MODEL = {"positions": "learned", "type_vocab_size": 2, "gated": True, "bias": False, "num_layer_groups": 1}


def kinds(params) -> dict[str, type]:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, Weight))
    return {trees.path_str(path): type(leaf) for path, leaf in leaves}


def test_the_forward_pass_is_that_of_int8_and_the_gradient_one_of_the_parameters(make_bundle):
    bundle = make_bundle(**MODEL)
    ids = np.random.default_rng(0).integers(5, 400, (4, 12)).astype(np.int32)
    seen = see_inputs(bundle.model, bundle.params, [{"token_ids": ids}])
    # Half of what calibration says, so that inputs are clipped; a layer without a step rounds each token by itself.
    inputs = {path: each._replace(step=each.step / 2) for path, each in calibrate(bundle.params, seen, "absmax",
              smooth=0.5).items() if not path.startswith("pooler/")}  # fmt: skip
    keep = ("^head/",)
    fake, int8 = (make(bundle.params, keep, inputs) for make in (fake_int8, quantize_int8))
    wanted = {path: FakeInt8 if kind is Int8 else kind for path, kind in kinds(int8).items()}
    assert kinds(fake) == wanted and FakeInt8 in wanted.values() and wanted["head/output/kernel"] is not FakeInt8

    @jax.jit
    def logits(params):
        return bundle.model.apply({"params": params}, ids)["logits"]

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        own = logits(fake_int8(params, keep, inputs))
        return jnp.mean(own[:, 0]), own

    grads, own = gradient(bundle.params)
    assert np.abs(logits(int8) - logits(bundle.params)).max() > 1e-3
    np.testing.assert_allclose(own, logits(int8), atol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(bundle.params)
    still = {trees.path_str(path) for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not np.any(leaf)}
    assert all(path.endswith("key/bias") for path in still), still
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_training_against_the_rounding_wins_back_what_it_costs():
    """One matrix that is to say what another says, through one coarse step: gradients straight through it do that."""
    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(256, 16)).astype(np.float32), draw.normal(size=(16, 8)).astype(np.float32)
    inputs = {"kernel": Inputs(step=np.full((1, 1), 0.01, np.float32))}  # beyond 1.27 it clips

    def error(weight):
        return jnp.mean(jnp.square(weight.dot(x) - x @ target))

    def loss(w):
        return error(fake_int8({"kernel": w}, (), inputs)["kernel"])

    w, step = jnp.asarray(target), jax.jit(lambda w: w - 0.5 * jax.grad(loss)(w))
    start = float(loss(w))
    for _ in range(100):
        w = step(w)
    assert float(loss(w)) < 0.9 * start
    np.testing.assert_allclose(error(quantize_int8({"kernel": w}, (), inputs)["kernel"]), loss(w), rtol=1e-5)
