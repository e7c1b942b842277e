"""What ONNX Runtime computes with exported files against what JAX computes with the bundle."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub, infer
from lepton_jax.compress import Inputs, quantize_int8
from lepton_jax.config import InferConfig, ModelConfig, TaskConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import Int8, dot, take
from lepton_jax.data import tokenizers
from lepton_jax.evaluate.metrics import softmax
from lepton_jax.infer.onnx import export, write
from lepton_jax.infer.onnx.export import outputs
from lepton_jax.models.transformer import Transformer, abstract_params, unstack

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BERT = {"norm_position": "post", "positions": "learned", "type_vocab_size": 2, "norm_epsilon": 1e-12}
FAMILIES = {
    "ours": {"gated": True},
    "bert": {**BERT, "pooling": "cls"},
    "roberta": {**BERT, "type_vocab_size": 1, "position_offset": 2, "head": "token_classification"},
    "modernbert": {"global_every": 2, "local_window": 2, "first_norm": False, "norm_bias": False, "bias": False},
    "albert": {"num_layer_groups": 1, "embedding_size": 16, "head": "masked_lm", "activation": "gelu_tanh"},
    "gpt2": {"positions": "learned", "causal": True, "pooling": "last", "labels": ()},
    "others": {"norm": "rms", "activation": "mish", "pooler_activation": "quick_gelu", "head": "pooler"},
    "headless": {**BERT, "head": "none"},
}
IN_INT8 = ("bert", "modernbert", "albert", "others")
SHAPES = ((8, 14), (5, 7), (1, 1))


@pytest.fixture(scope="module")
def exported(make_bundle, tmp_path_factory):
    """Returns a function that gives (bundle, path of its file) of a family in a precision, made once."""

    @functools.cache
    def make(family, precision):
        bundle = make_bundle(**FAMILIES[family])
        path = tmp_path_factory.mktemp("onnx") / f"{family}_{precision}.onnx"
        export(bundle, path, precision)
        return bundle, path

    return make


def run(path, *inputs) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path))
    names = [each.name for each in session.get_outputs()]
    feeds = {each.name: array for each, array in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip(names, session.run(names, feeds), strict=True))


def make_inputs(config: ModelConfig) -> list[np.ndarray]:
    """Returns int64 [8, 14] inputs whose rows have 14, 7, 5, 1, ... tokens."""
    draw = np.random.default_rng(0)
    mask = (np.arange(14)[None, :] < np.array([14, 7, 5, 1, 9, 3, 7, 12])[:, None]).astype(np.int64)
    ids = np.where(mask, draw.integers(5, 400, mask.shape), max(config.position_offset - 1, 0))
    types = [draw.integers(0, 2, mask.shape)] if config.type_vocab_size > 1 else []
    return [ids, mask, *types]


def reference(bundle, params, inputs) -> dict[str, np.ndarray]:
    return jax.jit(partial(outputs, bundle))(params, *(jnp.asarray(each, jnp.int32) for each in inputs))


def assert_close(found, expected, precision):
    """In int8, what lies halfway between two integers may become either of them: a few rows may differ by that."""
    difference = np.abs(found - expected).reshape(len(found), -1).max(-1)
    if precision == "float32":
        assert difference.max() < 1e-5
    else:
        assert np.mean(difference < 1e-4) >= 0.75 and difference.max() < 0.02


def in_precision(bundle, precision):
    return bundle.params if precision == "float32" else quantize_int8(bundle.params)


@pytest.mark.parametrize(
    ("family", "precision"), [*((family, "float32") for family in FAMILIES), *((family, "int8") for family in IN_INT8)]
)
def test_any_batch_and_length_give_what_jax_gives(exported, family, precision):
    bundle, path = exported(family, precision)
    inputs = make_inputs(bundle.config)
    ours = reference(bundle, unstack(in_precision(bundle, precision)), inputs)
    named = {"headless": {"hidden", "embedding"}, "others": {"hidden", "embedding", "pooled"}}
    assert set(ours) == named.get(family, {"logits"})
    for count, length in SHAPES:
        rows = [row for row in range(8) if inputs[1][row].sum() <= length][:count]
        theirs = run(path, *(each[rows, :length] for each in inputs))
        for name, found in theirs.items():
            expected = np.asarray(ours[name])[rows]
            real = slice(None)
            if name == "hidden" or bundle.card.head in ("token_classification", "masked_lm"):
                real, expected = inputs[1][rows, :length] > 0, expected[:, :length]
            assert found.shape == expected.shape and found.dtype == np.float32
            assert count == 1 or found[real].std() > 0.01
            assert_close(found[real], expected[real], precision)


def test_int8_differs_from_float_by_more_than_the_tolerance(exported):
    for family in IN_INT8:
        (bundle, path), (_, other) = exported(family, "float32"), exported(family, "int8")
        inputs = make_inputs(bundle.config)
        first, second = run(path, *inputs), run(other, *inputs)
        assert all(np.abs(first[name] - second[name]).max() > 5e-4 for name in first), family


def test_every_int8_layer_is_an_integer_product(exported):
    for family in IN_INT8:
        (bundle, path), (_, floats) = exported(family, "int8"), exported(family, "float32")
        model, other = onnx.load(path), onnx.load(floats)
        count, before = (collections.Counter(node.op_type for node in each.graph.node) for each in (model, other))
        stored = {each.name: each for each in model.graph.initializer}
        integers = {name for name, each in stored.items() if each.data_type == onnx.TensorProto.INT8}
        quantised = unstack(quantize_int8(bundle.params))
        leaves = jax.tree_util.tree_leaves_with_path(quantised, is_leaf=lambda leaf: isinstance(leaf, Int8))
        names = {trees.path_str(path) for path, leaf in leaves if isinstance(leaf, Int8)}
        assert integers == {f"{name}/values" for name in names}
        repeats = 2 if family == "albert" else 1  # both layers have one set of kernels; its head has the table
        kernels = [name for name in names if name.endswith("/kernel")]
        products = sum(repeats if name.startswith("layers_") else 1 for name in kernels) + (family == "albert")
        assert count["MatMulInteger"] == products and before["MatMulInteger"] == 0
        assert before["MatMul"] - count["MatMul"] == products and count["MatMul"] == 4  # those of attention
        read = {name for node in model.graph.node for name in node.input} | {each.name for each in model.graph.output}
        assert read.issuperset(name for node in model.graph.node for name in node.output) and read.issuperset(stored)
        assert max(np.prod(each.dims) for name, each in stored.items() if name not in integers) <= 448  # scales, biases


def test_a_file_says_what_it_needs_and_needs_nothing_of_ours(exported):
    bundle, path = exported("bert", "int8")
    model = onnx.load(path)
    assert [each.domain for each in model.opset_import] == [""] and not {node.domain for node in model.graph.node} - {
        ""
    }
    inputs = {each.name: each.type.tensor_type for each in model.graph.input}
    assert list(inputs) == ["token_ids", "attention_mask", "token_type_ids"]
    for each in inputs.values():
        assert each.elem_type == onnx.TensorProto.INT64
        assert [size.dim_param for size in each.shape.dim] == ["batch", "length"]
    metadata = {each.key: each.value for each in model.metadata_props}
    assert json.loads(metadata["labels"]) == ["bad", "fair", "good"]
    assert [metadata[name] for name in ("task", "head", "precision", "max_length")] == [
        "classification", "classification", "int8", "16"
    ]  # fmt: skip
    kept = tokenizers.load(path.with_name(f"{path.name}.tokenizer"))
    assert kept.fingerprint == bundle.tokenizer.fingerprint
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}.tokenizer"]


def test_runtimes_get_the_operators_that_they_have_programs_for(exported):
    count = collections.Counter(node.op_type for node in onnx.load(exported("bert", "float32")[1]).graph.node)
    assert [count[name] for name in ("Gelu", "LayerNormalization", "Softmax")] == [2, 5, 2]
    assert not count["Erf"] and not count["Exp"] and not count["Expand"]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_scores_are_those_of_the_predictor(make_bundle, tmp_path, precision):
    """Over real rows, through the tokenizer that lies beside the file; the card's temperature is in the logits."""
    bundle = make_bundle()
    bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, scale=1.7))
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdefghijklmnop   "), count)) for count in draw.integers(1, 50, 40)]
    ours = infer.from_bundle(bundle, precision, InferConfig((8, 16), (4,), 1)).scores(texts)
    assert len(set(ours.argmax(-1))) > 1
    path = tmp_path / "model.onnx"
    export(bundle, path, precision)
    rows = tokenizers.load(tmp_path / "model.onnx.tokenizer").rows(texts, max_length=16)
    ids, mask = np.zeros((2, len(rows), max(map(len, rows))), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row.ids, 1
    theirs = softmax(run(path, ids, mask)["logits"].astype(np.float64))
    assert_close(theirs, ours, precision)
    assert (theirs.argmax(-1) == ours.argmax(-1)).all()


def test_calibrated_int8_keeps_its_steps(exported, tmp_path):
    bundle, dynamic = exported("bert", "int8")
    draw = np.random.default_rng(0)

    def rounded(path, leaf):
        smooth = jnp.asarray(draw.uniform(0.5, 2, (*leaf.shape[:-1], 1)), jnp.float32)
        return Inputs(jnp.full((*leaf.shape[:-2], 1, 1), 0.03), smooth if "query" in path or "up" in path else None)

    leaves = {trees.path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(bundle.params)}
    steps = {path: rounded(path, leaf) for path, leaf in leaves.items() if path.endswith("kernel")}
    params = quantize_int8(bundle.params, inputs=steps)
    calibrated = dataclasses.replace(bundle, params=params, card=dataclasses.replace(bundle.card, weights="int8"))
    export(calibrated, tmp_path / "static", "int8")
    inputs = make_inputs(bundle.config)
    found = run(tmp_path / "static", *inputs)["logits"]
    assert np.abs(found - run(dynamic, *inputs)["logits"]).max() > 0.01
    assert_close(found, reference(calibrated, unstack(params), inputs)["logits"], "int8")
    with pytest.raises(UserError, match="holds int8 weights, which load as int8, not as float32"):
        export(calibrated, tmp_path / "float", "float32")
    assert not (tmp_path / "float").exists()


def test_int8_files_are_a_quarter(tmp_path):
    config = ModelConfig(vocab_size=4000, hidden_size=128, num_layers=1, intermediate_size=512, max_positions=64)
    card = hub.Card(config, "none", TaskConfig(), 64)
    model = Transformer(config, "none")
    shapes = abstract_params(model)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), shapes)
    for precision in ("float32", "int8"):
        export(hub.Bundle(model, params, None, card), tmp_path / precision, precision)
    sizes = [(tmp_path / precision).stat().st_size for precision in ("float32", "int8")]
    assert sizes[0] / sizes[1] > 3.7 and not (tmp_path / "int8.tokenizer").exists()


def test_integer_products_are_exact_at_their_bounds(tmp_path):
    """Sums of 127 * 127 and -127 * 127 over many entries, where 16-bit sums would overflow."""
    draw = np.random.default_rng(0)
    values = draw.integers(-127, 128, (512, 48)).astype(np.int8)
    values[:, 0], values[:, 1] = 127, -127
    table = draw.integers(-127, 128, (8, 512)).astype(np.int8)
    table[0], table[1] = 127, -127
    table[:, 0] = 127  # so that rounding a row changes nothing
    params = {"kernel": Int8(values, np.ones((1, 48), np.float32)), "table": Int8(table, np.ones((8, 1), np.float32))}

    def product(params, ids):
        return {"product": dot(take(params["table"], ids), params["kernel"])}

    write(tmp_path / "product.onnx", product, params, ["ids"], {})
    found = run(tmp_path / "product.onnx", np.arange(8).reshape(2, 4))["product"]
    expected = table.astype(np.int64) @ values.astype(np.int64)
    assert np.abs(expected).max() == 127 * 127 * 512 and np.array_equal(found.reshape(8, 48), expected)


def test_operations_one_by_one(tmp_path):
    """Those that models use in few ways only, in more ways than they do."""
    params = {"table": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)}

    def function(params, ids):
        x = params["table"][ids]  # [batch, length, 6]
        length = jnp.arange(ids.shape[1])
        odd = jax.lax.slice_in_dim(x, 1, 5, 2, axis=2)
        known = jnp.log1p(jnp.square(jnp.arange(3.0)))
        return {
            "pieces": jnp.concatenate([*jnp.split(x, 3, axis=-1)[::-1], odd], axis=-1),
            "counts": jnp.cumsum(ids, axis=1) + length[None, :] * ids.shape[0],
            "spread": jnp.broadcast_to(x.mean(axis=-1, keepdims=True), (*ids.shape, 2)),
            "rows": jnp.broadcast_to(length[None, :, None], (*ids.shape, 3)).reshape(-1, 3),
            "known": known[None, :] + jnp.squeeze(x[:, 0][:, None, 3], axis=1)[:, None],
        }

    write(tmp_path / "model.onnx", function, params, ["ids"], {})
    for shape in ((1, 1), (2, 5)):
        ids = np.random.default_rng(1).integers(0, 8, shape)
        ours = function(jax.tree.map(jnp.asarray, params), jnp.asarray(ids, jnp.int32))
        theirs = run(tmp_path / "model.onnx", ids)
        assert theirs.keys() == ours.keys()
        for name, found in theirs.items():
            np.testing.assert_allclose(found, ours[name], atol=1e-6, err_msg=name)


def test_a_row_without_tokens_is_finite_and_leaves_others_alone(exported):
    bundle, path = exported("bert", "float32")
    inputs = make_inputs(bundle.config)
    whole = run(path, *inputs)["logits"]
    inputs[1][2] = 0
    found = run(path, *inputs)["logits"]
    assert np.isfinite(found).all() and np.abs(found[2] - whole[2]).max() > 1e-3
    np.testing.assert_allclose(found[[0, 1, 3]], whole[[0, 1, 3]], atol=1e-6)


def test_what_cannot_be_written_leaves_the_file_as_it_is(make_bundle, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    relative = make_bundle(positions="none", relative=("c2p", "p2c"), relative_span=8)
    bundle = make_bundle()
    with pytest.raises(UserError, match=r"^ONNX: the model needs to know the length of rows beforehand"):
        export(relative, path)
    with pytest.raises(UserError, match=r"^ONNX: the model needs the operation 'sort', which cannot be written$"):
        write(path, lambda params, ids: {"sorted": jnp.sort(ids)}, {}, ["ids"], {})
    with pytest.raises(UserError, match=r"^precision='int4': must be float32 or int8$"):
        export(bundle, path, "int4")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[export.__module__], "_LIMIT", 100_000)
        with pytest.raises(UserError, match=r"0.0 GiB of weights, an ONNX file holds less than 2"):
            export(bundle, path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        with pytest.raises(UserError, match=r"needs a library; pip install 'lepton_jax\[onnx\]'"):
            export(bundle, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    export(bundle, path)
    assert path.stat().st_size > 10_000
    with pytest.raises(UserError, match="cannot be written"):
        export(bundle, tmp_path / "missing" / "model.onnx")
