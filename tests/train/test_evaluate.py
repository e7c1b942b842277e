"""Every row counts once, whatever the batches; masks are the same at every evaluation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import rng as rngs
from lepton_jax.core.errors import UserError
from lepton_jax.data.batches import evaluation_batches, evaluation_order
from lepton_jax.data.rows import Rows
from lepton_jax.train.evaluate import make_evaluate, make_outputs

RNG = np.random.default_rng(0)
ROWS = [RNG.integers(5, 64, size).astype(np.int32) for size in RNG.integers(3, 13, 21)]
LABELS = RNG.integers(0, 3, 21).astype(np.int32)


def batches(size, labels=LABELS):
    return list(evaluation_batches(Rows(ROWS, labels), size, 12, pack=False, pad_id=0))


@functools.cache
def evaluator(setup, **seed):
    return make_evaluate(setup.task, setup.model, setup.mesh, **seed)


def test_classification_counts_each_row_once_in_batches_of_any_size(training):
    """21 rows, in batches whose last one has 3, 11 or 19 filler rows, against NumPy over the rows one by one."""
    setup = training("classification", "data=4,fsdp=2")
    params = setup.start().params
    apply = jax.jit(lambda *inputs: setup.model.apply({"params": params}, *inputs)["logits"])
    (whole,) = batches(21)
    logits = np.asarray(apply(whole["token_ids"], whole["attention_mask"]), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(21), LABELS]
    wanted = {"loss": losses.mean(), "accuracy": (logits.argmax(-1) == LABELS).mean()}
    assert losses.std() > 0.1 and 0 < wanted["accuracy"] < 1
    for size, fillers in ((8, 3), (16, 11), (40, 19)):
        made = batches(size)
        assert sum(int((batch["weight"] == 0).sum()) for batch in made) == fillers
        found = evaluator(setup)(params, made)
        assert found.keys() == wanted.keys(), "the weight is no metric"
        assert found == pytest.approx(wanted, rel=1e-5)
    # The mean over batches would be another number.
    last = evaluator(setup)(params, batches(16)[1:])["loss"]
    first = evaluator(setup)(params, batches(16)[:1])["loss"]
    assert abs((first + last) / 2 - wanted["loss"]) > 1e-3


def test_masked_lm_hides_the_same_positions_every_time_and_others_in_every_batch(training):
    setup = training("masked_lm", "data=8")
    params, made = setup.start().params, batches(16, labels=None)
    evaluate = evaluator(setup)
    first = evaluate(params, made)
    assert first == evaluate(params, made) == make_evaluate(setup.task, setup.model, setup.mesh)(params, made)
    assert evaluator(setup, seed=1)(params, made)["loss"] != first["loss"]
    alone, twice = evaluate(params, made[:1]), evaluate(params, made[:1] * 2)
    assert alone["loss"] != twice["loss"], "the same rows have other masks in batch 1 than in batch 0"


def test_masked_lm_weighs_batches_by_their_predicted_positions(training):
    setup = training("masked_lm", "data=8")
    params, made = setup.start().params, batches(16, labels=None)
    loss = jax.jit(lambda batch, key: setup.task.loss(setup.model, params, batch, key, train=False)[1])
    parts = [loss(setup.put(batch), rngs.stream(jax.random.key(0), "evaluate", i)) for i, batch in enumerate(made)]
    weights, losses = ([float(part[name]) for part in parts] for name in ("weight", "loss"))
    assert len(made) == 2 and weights[1] < weights[0] / 2 and abs(losses[0] - losses[1]) > 1e-2
    wanted = np.average(losses, weights=weights)
    assert evaluator(setup)(params, made)["loss"] == pytest.approx(wanted, rel=1e-6)


def test_every_model_is_evaluated_on_the_same_positions(training):
    """Models that say the same whatever they see have the same loss only over the same hidden tokens."""
    losses = []
    bert = {"norm_position": "post", "positions": "learned", "dropout": 0.1}
    for changes, seed in (({}, 0), ({"num_layers": 1, "gated": True, "bias": False, **bert}, 0), ({}, 1)):
        setup = training("masked_lm", config=dataclasses.replace(training().config, **changes))
        params = jax.tree.map(jnp.zeros_like, setup.start().params)
        params["head"]["bias"] = jnp.linspace(-2.0, 3.0, 64)
        losses.append(evaluator(setup, seed=seed)(params, batches(16, labels=None))["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and abs(losses[0] - losses[2]) > 1e-3


def test_perplexity_is_the_exponential_of_the_mean_over_all_batches(training):
    setup = training("causal_lm", config=dataclasses.replace(training().config, causal=True))
    params, made = setup.start().params, batches(16, labels=None)
    found, parts = evaluator(setup)(params, made), [evaluator(setup)(params, [batch]) for batch in made]
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)
    assert np.ptp([part["loss"] for part in parts]) > 1e-2, "the mean of perplexities would be another number"
    assert "perplexity" not in evaluator(training("masked_lm"))(training("masked_lm").start().params, made)


def test_evaluation_has_no_dropout(training):
    configs = [dataclasses.replace(training().config, dropout=dropout) for dropout in (0.0, 0.5)]
    setups = [training("classification", config=config) for config in configs]
    params = setups[0].start().params
    losses = [evaluator(setup)(params, batches(24))["loss"] for setup in setups]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    (batch,) = batches(24)
    value = jax.jit(lambda b: setups[1].task.loss(setups[1].model, params, b, jax.random.key(0))[0])(batch)
    assert abs(float(value) - losses[0]) > 1e-3, "in training it has"


def test_without_a_batch_the_data_are_to_blame(training):
    with pytest.raises(UserError, match="validation data"):
        evaluator(training("classification"))({}, [])


@pytest.mark.parametrize("shape", ["", "data=4,fsdp=2", "data=2,tensor=2,sequence=2"])
def test_the_outputs_of_each_row_come_once_and_in_its_place_on_any_mesh(training, shape):
    setup, rows = training("classification", shape), Rows(ROWS, LABELS)
    params = setup.start().params
    alone = jax.device_get(params)
    apply = jax.jit(lambda ids: setup.model.apply({"params": alone}, ids, jnp.ones_like(ids))["logits"])
    wanted = [np.asarray(apply(ids[None]))[0] for ids in ROWS]  # one by one, without any padding
    assert np.ptp(wanted, axis=0).min() > 0.1, "rows must differ"
    outputs = make_outputs(setup.task, setup.model, setup.mesh)
    for size, buckets in ((8, ()), (16, (6, 12)), (24, (4, 8, 12))):
        made = list(evaluation_batches(rows, size, 12, pack=False, buckets=buckets, pad_id=0))
        found = outputs(params, made, evaluation_order(rows, buckets))
        assert len(found) == 21
        np.testing.assert_allclose(found, wanted, atol=1e-4)
