"""The encoder against a slow float64 reference, and what must not change its outputs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lepton_jax.compress import quantize_int8, uncalibrated
from lepton_jax.config import ModelConfig
from lepton_jax.core import sharding, trees
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.sizes import SIZES
from lepton_jax.models.transformer import Transformer, abstract_params, init_params, unstack

SMALL = ModelConfig(
    vocab_size=64, hidden_size=24, num_layers=3, num_heads=2, intermediate_size=40, max_positions=16,
    initializer_range=0.2,
)  # fmt: skip
VARIANTS = {
    "modern": {},
    "bert": {"norm_position": "post", "positions": "learned", "type_vocab_size": 2, "norm_epsilon": 1e-12},
    "gated, no biases, rms": {"gated": True, "bias": False, "norm": "rms", "activation": "silu"},
    "no norm biases, relu head": {"norm_bias": False, "head_activation": "relu"},
    "untied, tanh gelu, another base": {"tied_head": False, "activation": "gelu_tanh", "rotary_base": 500.0},
    "post-norm rotary relu": {"norm_position": "post", "activation": "relu", "num_layers": 1},
}
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)), jnp.int32)
MASK = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], jnp.int32)  # two packed documents and padding; one document
POSITIONS = jnp.asarray([[*range(5), *range(4), 0, 0, 0], [*range(12)]], jnp.int32)


def make(head="masked_lm", outputs=0, seed=0, **changes):
    """Returns a model and parameters with every entry random: biases and scales that start at 0 or 1 hide mistakes."""
    model = Transformer(dataclasses.replace(SMALL, **changes), head, outputs)
    params = init_params(model, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    noise = [0.1 * jax.random.normal(jax.random.key(index), leaf.shape) for index, leaf in enumerate(leaves)]
    return model, jax.tree.map(jnp.add, params, jax.tree.unflatten(structure, noise))


def apply(model, params, ids=IDS, mask=MASK, **arguments):
    return model.apply({"params": params}, ids, mask, positions=POSITIONS, **arguments)


def difference(a, b):
    return float(jnp.max(jnp.abs(a - b)))


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_float64_reference(name):
    model, params = make(**VARIANTS[name])
    out = apply(model, params)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row in range(2):
        inputs = (np.asarray(x[row]) for x in (IDS, MASK, POSITIONS))
        hidden = reference.encode(model.config, exact, *inputs)
        np.testing.assert_allclose(out["hidden"][row], hidden, atol=2e-5 * np.abs(hidden).max())
        logits = reference.masked_lm_logits(model.config, exact, hidden)
        np.testing.assert_allclose(out["logits"][row], logits, atol=2e-5 * np.abs(logits).max())


def test_the_variants_really_differ():
    outputs = [apply(*make(**changes))["logits"] for changes in VARIANTS.values()]
    for index, first in enumerate(outputs):
        assert all(difference(first, second) > 1e-3 for second in outputs[index + 1 :])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_packed_documents_never_see_each_other(positions):
    model, params = make(positions=positions)
    before, after = apply(model, params)["logits"], apply(model, params, IDS.at[0, 2].add(1))["logits"]
    assert difference(before[0, :5], after[0, :5]) > 1e-3, "document 1 must notice its own change"
    np.testing.assert_array_equal(before[0, 5:9], after[0, 5:9])

    def second_document(table):
        changed = {**params, "embeddings": {**params["embeddings"], "token": table}}
        return jnp.sum(apply(model, changed)["hidden"][0, 5:9])

    gradient = jax.grad(second_document)(params["embeddings"]["token"])
    only_first = sorted(set(IDS[0, :5].tolist()) - set(IDS[0, 5:9].tolist()))
    assert float(jnp.abs(gradient).max()) > 1e-3 and only_first
    np.testing.assert_array_equal(gradient[np.asarray(only_first)], 0.0)


def test_packed_equals_alone():
    model, params = make()
    packed = apply(model, params)["hidden"][0]
    for part in (slice(0, 5), slice(5, 9)):
        alone = model.apply({"params": params}, IDS[:1, part])["hidden"][0]
        np.testing.assert_allclose(packed[part], alone, atol=1e-5)


def test_padding_changes_nothing():
    model, params = make("classification", 3)
    short = model.apply({"params": params}, IDS[:, :7], jnp.ones((2, 7), jnp.int32))
    mask = jnp.pad(jnp.ones((2, 7), jnp.int32), ((0, 0), (0, 5)))
    long = model.apply({"params": params}, IDS, mask)
    assert difference(short["logits"], model.apply({"params": params}, IDS)["logits"]) > 1e-3
    np.testing.assert_allclose(short["logits"], long["logits"], atol=1e-5)


def test_rows_of_padding_alone_stay_finite():
    model, params = make("classification", 3)
    out = model.apply({"params": params}, IDS, jnp.zeros_like(IDS))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out))


def test_predicted_positions_are_a_selection_of_all():
    model, params = make()
    predict = jnp.asarray([[3, 0], [11, 7]])
    some, every = apply(model, params, predict=predict)["logits"], apply(model, params)["logits"]
    assert some.shape == (2, 2, 64) and every.shape == (2, 12, 64)
    np.testing.assert_allclose(some, jnp.take_along_axis(every, predict[:, :, None], axis=1), atol=1e-5)


def test_pooling_is_the_mean_the_first_or_the_last():
    kinds = ("mean", "cls", "last")
    out = {kind: apply(*make("pooler", pooling=kind, pooler="none")) for kind in kinds}
    hidden, pooled = out["mean"]["hidden"], {kind: out[kind]["pooled"] for kind in kinds}
    assert difference(pooled["mean"], pooled["cls"]) > 1e-3 and difference(pooled["last"], pooled["cls"]) > 1e-3
    np.testing.assert_allclose(pooled["mean"][0], hidden[0, :9].mean(0), atol=1e-5)
    np.testing.assert_array_equal(pooled["cls"], hidden[:, 0])
    np.testing.assert_array_equal(pooled["last"], jnp.stack([hidden[0, 8], hidden[1, 11]]))
    model, params = make("pooler", pooling="cls")
    dense = params["pooler"]["dense"]
    expected = jnp.tanh(apply(model, params)["hidden"][:, 0] @ dense["kernel"] + dense["bias"][None, :])
    np.testing.assert_allclose(apply(model, params)["pooled"], expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_packed_documents_are_pooled_and_classified_as_if_each_were_alone(pooling):
    model, params = make("classification", outputs=3, pooling=pooling)
    packed = apply(model, params, documents=3)
    assert packed["pooled"].shape == (2, 3, SMALL.hidden_size) and packed["logits"].shape == (2, 3, 3)
    for row, number, part in ((0, 0, slice(0, 5)), (0, 1, slice(5, 9)), (1, 0, slice(0, 12))):
        alone = model.apply({"params": params}, IDS[row : row + 1, part])
        for name in ("pooled", "logits"):
            np.testing.assert_allclose(packed[name][row, number], alone[name][0], atol=2e-5)
    assert difference(packed["logits"][0, 0], packed["logits"][0, 1]) > 1e-3
    assert np.isfinite(packed["logits"]).all(), "where a row has fewer documents, too"


def test_unrolled_layers_equal_scanned_ones():
    model, params = make()
    unrolled = model.clone(config=dataclasses.replace(model.config, unroll=0))
    programs = [jax.jit(m.apply).lower({"params": params}, IDS).as_text() for m in (model, unrolled)]
    assert ["stablehlo.while" in text for text in programs] == [True, False]
    np.testing.assert_allclose(apply(model, params)["hidden"], apply(unrolled, params)["hidden"], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"global_every": 2, "local_window": 2, "local_rotary_base": 100.0, "first_norm": False},
        {"num_layers": 4, "num_layer_groups": 2},
    ],
)
def test_layers_apart_equal_stacked_ones(changes):
    model, params = make(**changes)
    apart = unstack(params)
    assert {"layers_0", "layers_1"} <= apart.keys() and "layers" not in apart
    assert trees.count(apart) == trees.count(params)
    programs = [jax.jit(model.apply).lower({"params": tree}, IDS).as_text() for tree in (params, apart)]
    assert "dynamic_slice" in programs[0] and "dynamic_slice" not in programs[1]
    np.testing.assert_allclose(apply(model, params)["hidden"], apply(model, apart)["hidden"], atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"norm_position": "post"}, {"num_layers": 4, "num_layer_groups": 2}])
@pytest.mark.parametrize("form", ["scanned", "apart", "remat"])
def test_hidden_states_are_those_of_shorter_models(changes, form):
    """The state after n layers is what a model of the first n layers gives, but for the norm after the last."""
    model, params = make(remat="full" if form == "remat" else "none", **changes)
    out = apply(model, unstack(params) if form == "apart" else params, hidden_states=True)
    config = model.config
    states = out["hidden_states"]
    assert states.shape == (1 + config.num_layers, *IDS.shape, config.hidden_size)
    assert all(difference(a, b) > 1e-2 for a, b in itertools.pairwise(states))
    np.testing.assert_array_equal(states[-1], out["hidden"])
    np.testing.assert_allclose(out["hidden"], apply(model, params)["hidden"], atol=1e-5)
    assert "hidden_states" not in apply(model, params)
    share = config.num_layers // (config.num_layer_groups or config.num_layers)  # layers that one entry stands for
    for entries in range(1, jax.tree.leaves(params["layers"])[0].shape[0]):
        cut = {**params, "layers": jax.tree.map(lambda leaf, n=entries: leaf[:n], params["layers"])}
        groups = entries if config.num_layer_groups else 0
        short = model.clone(config=dataclasses.replace(config, num_layers=share * entries, num_layer_groups=groups))
        expected, state = apply(short, cut)["hidden"], states[share * entries]
        if config.norm_position == "pre":
            scale, bias = params["final_norm"]["scale"], params["final_norm"]["bias"]
            centred = state - state.mean(-1, keepdims=True)
            state = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + config.norm_epsilon)
            state = state * scale[None, None, :] + bias[None, None, :]
        np.testing.assert_allclose(state, expected, atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    model, params = make()
    saving = model.clone(config=dataclasses.replace(model.config, remat=remat))
    gradients = [jax.grad(lambda p, m=m: apply(m, p)["logits"].std()) for m in (model, saving)]
    programs = [str(jax.make_jaxpr(gradient)(params)) for gradient in gradients]
    assert ["remat" in program or "checkpoint" in program for program in programs] == [False, True]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(gradient(params) for gradient in gradients)
    )


def test_dropout_is_active_only_in_training():
    model, params = make(dropout=0.5)
    keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (apply(model, params, train=True, rngs=rngs)["hidden"] for rngs in keys)
    np.testing.assert_array_equal(first, again)
    assert difference(first, other) > 1e-2 and difference(first, apply(model, params)["hidden"]) > 1e-2
    np.testing.assert_array_equal(apply(model, params, rngs=keys[2])["hidden"], apply(model, params)["hidden"])


def test_layers_drop_out_independently():
    """Two layers that each add dropout(1) = 0 or 2 to a hidden state of 0 give three sums, with one mask only two."""
    model, params = make(dropout=0.5, num_layers=2)
    params = jax.tree.map(jnp.zeros_like, params)
    params["layers"]["attention"]["output"]["bias"] += 1.0
    params["final_norm"]["scale"] += 1.0
    hidden = apply(model, params, train=True, rngs={"dropout": jax.random.key(0)})["hidden"]
    assert len(set(np.round(np.asarray(hidden[0, 0]), 3).tolist())) == 3


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    model, params = make()
    half = model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))
    out, exact = apply(half, params), apply(model, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert out["hidden"].dtype == jnp.bfloat16 and exact["hidden"].dtype == jnp.float32
    np.testing.assert_allclose(out["hidden"].astype(jnp.float32), exact["hidden"], atol=0.15)


def calibrate_every_kernel(params):
    paths = jax.tree.leaves(trees.map_with_path(lambda path, _: path, params))
    kernels = [path for path in paths if path.endswith("/kernel")]
    return quantize_int8(params, (), uncalibrated(params, kernels, kernels))


@pytest.mark.parametrize("name", VARIANTS)
def test_rules_place_every_parameter_float_or_int8(name):
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    for head, outputs in (("masked_lm", 0), ("classification", 2)):
        shapes = abstract_params(Transformer(dataclasses.replace(SMALL, **VARIANTS[name]), head, outputs))
        calibrated = jax.eval_shape(calibrate_every_kernel, shapes)
        for tree in (shapes, jax.eval_shape(quantize_int8, shapes), calibrated):
            placed = sharding.shardings(tree, mesh, RULES)
            sharded = trees.map_with_path(lambda path, where: path if any(where.spec) else "", placed)
            assert any("query" in path for path in jax.tree.leaves(sharded))


PARAMETERS = {"nano": 4_303_872, "tiny": 10_973_696, "small": 34_543_616, "base": 108_498_432, "large": 333_568_000}


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_have_pinned_parameter_counts(size):
    """Without the head, vocabulary 30,522. With another count saved models no longer load: change it knowingly."""
    config = ModelConfig(vocab_size=30_522, **SIZES[size])
    assert trees.count(abstract_params(Transformer(config))) == PARAMETERS[size]
