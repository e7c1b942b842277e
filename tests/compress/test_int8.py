"""What is quantised, what is not, and what the compiled program multiplies."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter

import jax
import numpy as np
import pytest

from lepton_jax import infer
from lepton_jax.compress import quantize_int8
from lepton_jax.config import InferConfig
from lepton_jax.core import trees
from lepton_jax.core.weights import Int8, Weight
from lepton_jax.data.rows import Rows
from lepton_jax.infer import Predictor

ONE = InferConfig(devices=1)
VARIANTS = {
    "plain": {},
    "gated, without biases": {"gated": True, "bias": False},
    "learned positions, token types": {"positions": "learned", "type_vocab_size": 2},
}


def is_weight(node) -> bool:
    return isinstance(node, Weight)


def random_texts(count: int = 64) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices("abcdefghijklmnop   ", k=draw.randint(4, 60))) for _ in range(count)]


def weights(params) -> dict[str, bool]:
    """Returns path -> whether it is Int8, of every weight and array."""
    return {
        trees.path_str(path): isinstance(leaf, Int8)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_weight)
    }


def products(predictor: Predictor) -> Counter[tuple[int, str, str, str]]:
    """Returns (number of batching axes, left, right and result type) -> how often the lowered program multiplies so.

    A function of the program counts as often as it is called, the body of a loop once.
    """
    batch = predictor.pad(Rows([np.ones(8, np.int32)] * 4))
    text = predictor.forward.lower(predictor.params, *batch).as_text()
    functions = dict(re.findall(r"func\.func \w+ @(\w+)(.*?)(?=func\.func|\Z)", text, re.DOTALL))

    def count(name: str) -> Counter[tuple[int, str, str, str]]:
        found: Counter[tuple[int, str, str, str]] = Counter()
        for line in functions[name].splitlines():
            if "dot_general" in line:
                batching = re.search(r"batching_dims = \[([\d, ]*)\]", line)
                kinds = re.search(r": \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\) -> tensor<[\dx]*x(\w+)>", line)
                assert kinds, f"a product that this test cannot read: {line}"
                found[len(batching[1].split(",")) if batching else 0, kinds[1], kinds[2], kinds[3]] += 1
            for called in re.findall(r"call @(\w+)", line):
                found += count(called)
        return found

    return count("main")


def linear_layers(config) -> int:
    """Returns how many linear layers a classifier has: of each block, and two of the head."""
    return config.num_layers * (4 + (3 if config.gated else 2)) + 2


@pytest.mark.parametrize("name", VARIANTS)
def test_every_linear_layer_multiplies_int8_by_int8_into_int32(make_bundle, name):
    bundle = make_bundle(unroll=0, **VARIANTS[name])
    attention = (2, "f32", "f32", "f32")  # scores and sums of values, over rows and heads: no parameter in them
    linear = linear_layers(bundle.config)
    exact, int8 = products(infer.from_bundle(bundle, config=ONE)), products(infer.from_bundle(bundle, "int8", ONE))
    assert exact == {attention: 4, (0, "f32", "f32", "f32"): linear}
    assert int8 == {attention: 4, (0, "i8", "i8", "i32"): linear}


def test_a_stack_of_layers_multiplies_the_same_in_its_loop(make_bundle):
    bundle = make_bundle(unroll=1)
    predictor = infer.from_bundle(bundle, "int8", ONE)
    per_block = (linear_layers(bundle.config) - 2) // bundle.config.num_layers
    assert products(predictor)[0, "i8", "i8", "i32"] == linear_layers(bundle.config)
    predictor.params = quantize_int8(bundle.params)
    assert products(predictor)[0, "i8", "i8", "i32"] == per_block + 2


def test_a_tied_masked_lm_head_multiplies_by_the_int8_table(make_bundle):
    bundle = make_bundle("masked_lm", unroll=0)
    params = quantize_int8(bundle.params)
    lowered = jax.jit(bundle.model.apply).lower({"params": params}, np.ones((2, 8), np.int32)).as_text()
    assert re.search(r"dot_general .*\[1\] x \[1\].*tensor<448x32xi8>\) -> tensor<16x448xi32>", lowered)
    assert not re.search(r"dot_general .*x448xf32>", lowered)


@pytest.mark.parametrize("name", VARIANTS)
def test_kernels_and_tables_become_int8_and_nothing_else(make_bundle, name):
    kinds = weights(quantize_int8(make_bundle(**VARIANTS[name]).params))
    expected = {
        path: path.endswith("/kernel") or bool(re.fullmatch(r"embeddings/(token|position|type)", path))
        for path in kinds
    }
    assert kinds == expected and {True, False} <= set(kinds.values())


def test_scales_are_per_output_channel_and_per_row_of_a_table(make_bundle):
    params = quantize_int8(make_bundle().params)
    kernel, table = params["layers"]["feed_forward"]["up"]["kernel"], params["embeddings"]["token"]
    assert kernel.values.shape == (2, 32, 48) and kernel.scale.shape == (2, 1, 48)
    assert table.values.shape == (448, 32) and table.scale.shape == (448, 1)


def test_every_weight_is_within_half_a_scale(make_bundle):
    params = make_bundle().params
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(quantize_int8(params), is_leaf=is_weight), strict=True)
    largest = 0.0
    for exact, rounded in pairs:
        if is_weight(rounded):
            error = np.abs(exact - rounded.dense())
            assert np.all(error <= rounded.scale * 0.5001)
            shared = next(axis for axis in (-1, -2) if rounded.scale.shape[axis] == 1)
            assert np.all(np.max(np.abs(rounded.values), axis=shared) == 127), "the whole range of int8 is used"
            largest = max(largest, float(error.max()))
        else:
            np.testing.assert_array_equal(exact, rounded)
    assert largest > 1e-4, "rounding must be visible"


def test_keep_float_leaves_what_it_matches(make_bundle):
    params = make_bundle().params
    kept, every = quantize_int8(params, ("^pooler/", "embeddings/token")), quantize_int8(params)
    changed = {path for path, yes in weights(every).items() if yes} - {
        path for path, yes in weights(kept).items() if yes
    }
    assert changed == {"embeddings/token", "pooler/dense/kernel"}
    assert kept["pooler"]["dense"]["kernel"] is params["pooler"]["dense"]["kernel"]


def test_the_size_falls_nearly_to_a_quarter(make_bundle):
    """Of a realistic width; what stays are the scales, the norms and the biases."""
    config = dataclasses.replace(make_bundle().config, hidden_size=128, intermediate_size=512)
    shapes = jax.eval_shape(
        lambda: make_bundle().model.clone(config=config).init(jax.random.key(0), np.ones((1, 2), np.int32))
    )
    small = jax.eval_shape(quantize_int8, shapes["params"])
    ratio = trees.num_bytes(shapes["params"]) / trees.num_bytes(small)
    assert 3.5 < ratio < 4.0
    assert trees.num_bytes(
        jax.eval_shape(lambda tree: quantize_int8(tree, ("",)), shapes["params"])
    ) == trees.num_bytes(shapes["params"])


@pytest.mark.parametrize("name", VARIANTS)
def test_predictions_stay_close_to_float32(make_bundle, name):
    bundle = make_bundle(**VARIANTS[name])
    texts = random_texts()
    exact, rounded = infer.from_bundle(bundle).scores(texts), infer.from_bundle(bundle, "int8").scores(texts)
    difference = np.abs(exact - rounded)
    assert 0 < difference.max() < 0.05
    assert exact.std(axis=0).min() > 5 * difference.mean(), "the texts must differ by more than the rounding"
    assert np.mean(exact.argmax(axis=1) == rounded.argmax(axis=1)) >= 0.9
