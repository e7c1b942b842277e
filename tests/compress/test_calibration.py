"""What is observed of inputs, the bounds that are chosen from it, and models whose inputs are rounded by them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub, infer
from lepton_jax.compress import calibrate, quantize_int8, see_inputs
from lepton_jax.config import CompressConfig, Config, TaskConfig
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.core.observation import EDGES, Seen, observe
from lepton_jax.core.weights import Int8
from lepton_jax.data.sources import Examples
from lepton_jax.stages import compression
from lepton_jax.stages.assessment import Judge, encode

POST = {"norm_position": "post", "positions": "learned", "norm_epsilon": 1e-12}


def batches(count=3, rows=4, length=12, seed=0):
    draw = np.random.default_rng(seed)
    return [{"token_ids": draw.integers(5, 400, (rows, length)).astype(np.int32)} for _ in range(count)]


def outlying(seed=0, rows=512, size=32, factor=30.0):
    """Inputs [rows, size] of which one channel is far larger than the others."""
    x = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    x[:, 3] *= factor
    return x


def kernel(seed=1, shape=(32, 24)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def calibrated(x, w, bound, smooth=0.0, percentile=99.9):
    """Returns (what multiplies w, its error relative to the exact product)."""
    params = {"attention": {name: {"kernel": w} for name in ("query", "output")}}
    seen = {f"attention/{name}/kernel": observe(jnp.asarray(x)) for name in ("query", "output")}
    layers = quantize_int8(params, inputs=calibrate(params, seen, bound, percentile, smooth))["attention"]
    assert layers["output"]["kernel"].smooth is None, "what comes from no norm is not smoothed"
    weight = layers["query"]["kernel"]
    exact = x.astype(np.float64) @ w.astype(np.float64)
    return weight, np.linalg.norm(np.asarray(weight.dot(jnp.asarray(x))) - exact) / max(np.linalg.norm(exact), 1e-30)


def test_magnitudes_are_counted_between_edges():
    x = np.array([[0.0, 1.0], [-1.01, 5000.0], [2.0**-20, -0.5]], np.float32)
    seen = observe(jnp.asarray(x))
    np.testing.assert_array_equal(seen.largest, np.abs(x).max(0))
    expected = np.zeros(seen.counts.shape)
    for row in np.abs(x):
        for channel, value in enumerate(row):
            expected[channel, np.clip(np.searchsorted(EDGES, value, "right") - 1, 0, len(EDGES) - 2)] += 1
    np.testing.assert_array_equal(seen.counts, expected)


@pytest.mark.parametrize("unroll", [0, 1])
def test_inputs_of_every_linear_layer_are_seen(make_bundle, unroll):
    """A post-norm layer's query multiplies the hidden state before it: the model itself says what those were."""
    bundle = make_bundle(unroll=unroll, **POST)
    data = batches()
    seen = see_inputs(bundle.model, bundle.params, data)
    assert set(seen) == {path for path, _ in paths(bundle.params) if path.endswith("/kernel")}
    states = np.concatenate(
        [bundle.model.apply({"params": bundle.params}, **batch, hidden_states=True)["hidden_states"] for batch in data],
        axis=1,
    )  # [layers + 1, rows, T, D]
    for name in ("query", "key", "value"):
        query = seen[f"layers/attention/{name}/kernel"]
        np.testing.assert_allclose(query.largest, np.abs(states[:-1]).max((1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(query.counts.sum(-1), np.full(query.largest.shape, 3 * 4 * 12))
    assert np.ptp(np.asarray(seen["layers/attention/query/kernel"].largest), axis=0).min() > 0, "layers differ"


def paths(tree):
    return [(trees.path_str(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_layers_that_share_a_kernel_are_seen_together(make_bundle):
    apart, shared = make_bundle(**POST), make_bundle(num_layer_groups=1, **POST)
    data = batches()
    one = see_inputs(shared.model, shared.params, data)
    copied = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), shared.params["layers"]["shared"])
    both = see_inputs(apart.model, shared.params | {"layers": copied}, data)
    for path in both:
        if path.startswith("layers/"):
            mine, parts = one[path.replace("layers/", "layers/shared/")], both[path]
            np.testing.assert_allclose(mine.largest[0], np.max(parts.largest, axis=0), rtol=1e-6)
            np.testing.assert_allclose(mine.counts[0].sum(), parts.counts.sum())


def test_what_was_seen_adds_up():
    first, second = outlying(0, 100), outlying(1, 50, factor=60)
    together, parts = observe(jnp.concatenate([first, second])), [observe(jnp.asarray(x)) for x in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, Seen.add(Seen.add(None, parts[0]), parts[1]), together)


def test_the_largest_magnitude_becomes_127_and_nothing_is_clipped():
    x, w = outlying(), kernel()
    weight, _ = calibrated(x, w, "absmax")
    np.testing.assert_allclose(weight.step, np.abs(x).max() / 127, rtol=1e-6)
    assert weight.step.shape == (1, 1)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_a_percentile_is_that_of_the_smoothed_inputs(percentile, smooth):
    x, w = outlying(rows=4000), kernel()
    weight, _ = calibrated(x, w, "percentile", smooth, percentile)
    factors = 1.0 if weight.smooth is None else np.asarray(weight.smooth)[:, 0]
    wanted = np.percentile(np.abs(x / factors), percentile)
    assert wanted < 0.8 * np.abs(x / factors).max(), "the percentile must clip"
    np.testing.assert_allclose(float(weight.step[0, 0]) * 127, wanted, rtol=2 ** (1 / 8) - 1)


def test_the_bound_of_least_error_is_close_to_the_best_of_all():
    """Values with a long tail, which neither the largest magnitude nor a low percentile suits."""
    x = np.random.default_rng(0).standard_t(3, size=(4000, 32)).astype(np.float32)

    def error(bound):
        step = bound / 127
        return float(((np.clip(np.round(x / step), -127, 127) * step - x) ** 2).mean())

    step = float(calibrated(x, kernel(), "mse")[0].step[0, 0])
    top = np.abs(x).max()
    best = min(error(share * top) for share in np.linspace(0.01, 1, 400))
    assert best < 0.7 * error(top), "clipping must pay"
    assert error(127 * step) < 1.1 * best


def test_the_error_of_a_channel_counts_by_its_weights():
    """Clipping the outlier costs nothing where it is not looked at, and too much where it is."""
    x, heedless, heeding = outlying(), kernel(), kernel()
    heedless[3], heeding[3] = 0, 10
    low, high = (float(calibrated(x, w, "mse")[0].step[0, 0]) * 127 for w in (heedless, heeding))
    assert low < 6 < 0.8 * np.abs(x).max() < high


@pytest.mark.parametrize("bound", [None, "absmax"])
def test_smoothing_moves_outliers_into_weights(bound):
    """With one step for all inputs an outlier costs the other channels their bits; within a token, as well."""
    x, w = outlying(), kernel()
    (plain, before), (weight, after) = (calibrated(x, w, bound, smooth) for smooth in (0.0, 0.5))
    assert plain.smooth is None and weight.smooth.shape == (32, 1)
    assert after < 0.6 * before < 0.1
    expected = np.sqrt(np.abs(x).max(0) / np.abs(w).max(1))
    np.testing.assert_allclose(weight.smooth[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(weight.dense(), w, atol=0.02 * np.abs(w).max())


@pytest.mark.parametrize("smooth", [False, True])
def test_a_static_product_equals_the_slow_integer_reference(smooth):
    """Inputs beyond the bound are clipped."""
    x, w = outlying(rows=40), quantize_int8({"kernel": kernel()})["kernel"]
    factors = np.exp2(np.random.default_rng(2).integers(-2, 3, (32, 1))).astype(np.float32)
    weight = dataclasses.replace(
        w, step=jnp.full((1, 1), 2.0**-5, jnp.float32), smooth=jnp.asarray(factors) if smooth else None
    )
    steps = np.round(x / (2.0**-5 * (factors.T if smooth else 1)))
    assert (np.abs(steps) > 127).any() and (np.abs(steps) < 127).any()
    integers = np.clip(steps, -127, 127).astype(np.int64) @ np.asarray(w.values, np.int64)
    expected = integers.astype(np.float32) * np.float32(2.0**-5) * np.asarray(w.scale)
    np.testing.assert_array_equal(weight.dot(jnp.asarray(x)), expected)


def test_a_kernel_that_was_calibrated_has_no_transpose():
    weight, _ = calibrated(outlying(), kernel(), "absmax")
    with pytest.raises(ValueError, match="calibrated"):
        _ = weight.T


def test_channels_without_inputs_or_weights_stay_as_they_are():
    x, w = outlying(), kernel()
    x[:, 5], w[7] = 0, 0
    weight, error = calibrated(x, w, "absmax", smooth=0.5)
    assert weight.smooth[5] == weight.smooth[7] == 1 and error < 0.1
    silent, _ = calibrated(np.zeros_like(x), w, "mse")
    np.testing.assert_array_equal(silent.dot(jnp.zeros((2, 32))), np.zeros((2, 24)))


# Whole models.

FORMS = {
    "absmax": {"inputs": "absmax"},
    "percentile": {"inputs": "percentile", "percentile": 99.9},
    "mse, smoothed": {"inputs": "mse", "smooth": 0.5},
    "dynamic, smoothed": {"smooth": 0.5},
}


def examples_of(corpus, count=120):
    texts = (corpus / "text.txt").read_text().split("\n\n")[:count]
    return Examples(texts, [("bad", "fair", "good")[len(text) % 3] for text in texts])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [0, 1])
def test_a_calibrated_model_is_close_to_float_and_loads_as_it_was_written(make_bundle, corpus, tmp_path, form, groups):
    bundle, examples = make_bundle(num_layer_groups=groups, **POST), examples_of(corpus)
    config = CompressConfig(method="int8", keep_float=("^pooler/",), texts=64, **FORMS[form])
    int8 = compression.quantised(bundle, config, examples)
    weight = int8.params["layers"]
    weight = (weight["shared"] if groups else weight)["feed_forward"]["up"]["kernel"]
    assert isinstance(weight, Int8) and not isinstance(int8.params["pooler"]["dense"]["kernel"], Int8)
    assert (weight.step is not None) == ("inputs" in FORMS[form])
    assert (weight.smooth is not None) == ("smooth" in FORMS[form])
    exact, rounded = (
        infer.from_bundle(one, kind).scores(examples.texts) for one, kind in ((bundle, "float32"), (int8, "int8"))
    )
    dynamic = infer.from_bundle(bundle, "int8").scores(examples.texts)
    assert 0 < np.abs(rounded - exact).max() < 0.15 and (rounded != dynamic).any()
    hub.write(tmp_path / "int8", int8)
    loaded = infer.load(tmp_path / "int8", "int8")
    assert jax.tree.structure(hub.load(tmp_path / "int8").params) == jax.tree.structure(int8.params)
    np.testing.assert_array_equal(loaded.scores(examples.texts), rounded)


def test_texts_are_cut_so_that_no_row_is_padded(make_bundle, corpus):
    bundle, examples = make_bundle(**POST), examples_of(corpus)
    rows = list(compression._rows(bundle, examples, 50))
    shapes = [row["token_ids"].shape for row in rows]
    assert {length for _, length in shapes} <= {4, 8, 16} and 40 <= sum(count for count, _ in shapes) <= 50
    assert bundle.tokenizer is not None and all((row["token_ids"] != bundle.tokenizer.pad_id).all() for row in rows)
    ends = {ids[-1] for row in rows for ids in row["token_ids"].tolist()}
    assert len(ends) == 1, "every row keeps its last special token"


def test_texts_too_short_to_observe_leave_the_dynamic_form(make_bundle, caplog):
    bundle = make_bundle(**POST)
    int8 = compression.quantised(
        bundle, CompressConfig(method="int8", inputs="mse", smooth=0.5), Examples([""] * 5, ["bad"] * 5)
    )
    assert "no training text has 4 tokens" in caplog.text
    assert jax.tree.structure(int8.params) == jax.tree.structure(quantize_int8(bundle.params))


def test_a_model_that_loses_too_much_is_not_written(make_bundle, corpus, tmp_path, caplog):
    bundle, examples = make_bundle(**POST), examples_of(corpus)
    validation = encode(examples, bundle.tokenizer, bundle.card)

    def compress(name, outputs, max_drop):
        config = Config(stage="finetune", task=TaskConfig(name="classification"),
                        compress=CompressConfig(method="int8", max_drop=max_drop))  # fmt: skip
        return compression.compress(config, tmp_path / name, bundle, examples, validation, lambda: outputs)

    exact = infer.from_bundle(bundle).outputs(examples.texts)
    float_accuracy = Judge(bundle.card).measure(validation, exact)["accuracy"]
    predictor, figures = compress("fine", exact, max_drop=0.5)
    assert predictor is not None and (tmp_path / "fine" / "params").exists()
    found = predictor(examples.texts)
    accuracy = np.mean([one["label"] == label for one, label in zip(found, examples.labels, strict=True)])
    assert figures == {"refused": False, "validation_drop": pytest.approx(float_accuracy - accuracy)}
    assert accuracy < 0.9, "what says every label must be better by more than the limit"
    best = [np.eye(3)[("bad", "fair", "good").index(label)] for label in examples.labels]
    refused, figures = compress("refused", best, max_drop=0.01)
    assert refused is None and figures["refused"] and not (tmp_path / "refused").exists()
    assert figures["validation_drop"] == pytest.approx(1 - accuracy)
    assert f"loses {1 - accuracy:.4f} of accuracy" in caplog.text and "compress.max_drop is 0.01" in caplog.text
    assert compress("within", best, max_drop=float(1 - accuracy) + 1e-6)[0] is not None
    assert compress("any", best, max_drop=1.0)[1] == {} and (tmp_path / "any" / "params").exists()


def test_a_card_that_names_other_kernels_is_refused(make_bundle, corpus, tmp_path):
    int8 = compression.quantised(
        make_bundle(**POST), CompressConfig(method="int8", inputs="absmax"), examples_of(corpus)
    )
    hub.write(tmp_path / "int8", int8)
    card = tmp_path / "int8" / "model.json"
    card.write_text(card.read_text().replace("layers/attention/query/kernel", "layers/attention/quarry/kernel"))
    with pytest.raises(UserError, match="quarry"):
        hub.load(tmp_path / "int8")
