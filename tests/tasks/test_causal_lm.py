"""The next token within a document: against float64, causality, rows without targets.

`tests/hub/test_parity.py` compares the loss with PyTorch's.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import tasks
from lepton_jax.config import ModelConfig, TaskConfig
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.causal_lm import CausalLM

CONFIG = ModelConfig(
    vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=12, causal=True,
    initializer_range=0.3,
)  # fmt: skip
KEY = jax.random.key(5)


@functools.cache
def make(dropout=0.0):
    model = Transformer(dataclasses.replace(CONFIG, dropout=dropout), CausalLM.head)
    return model, jax.jit(functools.partial(init_params, model))(jax.random.key(0))


@functools.cache
def gradient_fn(train=True, dropout=0.0):
    """Returns a compiled (params, batch, key) -> ((loss, metrics), gradients)."""
    model = make(dropout)[0]

    def loss(params, batch, key):
        return CausalLM().loss(model, params, batch, key, train)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def make_batch():
    """Two packed documents and padding; one document; a document of one token; a filler row."""
    ids = np.random.default_rng(0).integers(5, 32, (4, 12))
    mask = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12, [1] + [0] * 11, [1] * 12])
    positions = np.array([[*range(5), *range(4), 0, 0, 0], [*range(12)], [0] * 12, [*range(12)]])
    batch = {"token_ids": ids * (mask > 0), "attention_mask": mask, "positions": positions}
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}
    return {**batch, "weight": jnp.asarray([1.0, 1.0, 1.0, 0.0])}


PAIRS = [(0, at) for at in (0, 1, 2, 3, 5, 6, 7)] + [(1, at) for at in range(11)]  # (row, position) with a next token


def test_loss_and_accuracy_are_those_of_the_next_tokens_of_each_document():
    model, params = make()
    batch = make_batch()
    inputs = (batch["token_ids"], batch["attention_mask"])
    logits = jax.jit(model.apply)({"params": params}, *inputs, positions=batch["positions"])["logits"]
    logits, ids = np.asarray(logits, np.float64), np.asarray(batch["token_ids"])
    losses = [math.log(np.exp(logits[r, t]).sum()) - logits[r, t, ids[r, t + 1]] for r, t in PAIRS]
    accuracy = np.mean([logits[r, t].argmax() == ids[r, t + 1] for r, t in PAIRS])
    (loss, metrics), _ = gradient_fn()(params, batch, KEY)
    assert np.std(losses) > 0.1 and metrics.keys() == {"loss", "accuracy", "weight"} and loss.dtype == jnp.float32
    assert metrics["weight"] == len(PAIRS) and metrics["loss"] == loss
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, atol=1e-6)


def test_the_first_token_of_a_document_is_no_target_even_if_it_sees_the_one_before():
    """The targets are those of isolated documents, so that the losses of both compare."""
    model, params = make()
    batch = make_batch()
    apart = gradient_fn()(params, batch, KEY)[0]
    real = (batch["attention_mask"] > 0).astype(jnp.int32)
    joined = batch | {
        "documents": batch["attention_mask"], "attention_mask": real, "positions": real * jnp.arange(12)[None, :]
    }  # fmt: skip
    inputs = (joined["token_ids"], joined["attention_mask"])
    logits = jax.jit(model.apply)({"params": params}, *inputs, positions=joined["positions"])["logits"]
    logits, ids = np.asarray(logits, np.float64), np.asarray(batch["token_ids"])
    losses = [math.log(np.exp(logits[r, t]).sum()) - logits[r, t, ids[r, t + 1]] for r, t in PAIRS]
    loss, metrics = gradient_fn()(params, joined, KEY)[0]
    assert metrics["weight"] == apart[1]["weight"] == len(PAIRS) and abs(loss - apart[0]) > 1e-3
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_nothing_beyond_its_document_changes_a_tokens_loss():
    """By the gradient of one document's loss by the embedding of tokens: only its own count."""
    batch = make_batch()
    other = {**batch, "token_ids": batch["token_ids"].at[0, 5:].set(jnp.arange(7) + 20)}
    row = {name: value[:1] for name, value in batch.items()}
    model, params = make()

    def logits(batch):
        return model.apply({"params": params}, batch["token_ids"], batch["attention_mask"],
                           positions=batch["positions"])["logits"][0]  # fmt: skip

    first, moved = logits(row), logits({name: value[:1] for name, value in other.items()})
    np.testing.assert_array_equal(first[:5], moved[:5])
    assert (first[5:9] != moved[5:9]).any()
    early = {**row, "token_ids": row["token_ids"].at[0, 3].add(1)}
    np.testing.assert_array_equal(first[:3], logits(early)[:3])
    assert (first[3:5] != logits(early)[3:5]).any()


@pytest.mark.parametrize("empty", ["single tokens", "padding", "filler rows"])
def test_without_a_next_token_loss_and_gradient_are_zero(empty):
    params, batch = make()[1], make_batch()
    assert gradient_fn()(params, batch, KEY)[0][0] > 0
    batch |= {
        "single tokens": {"attention_mask": jnp.arange(1, 13, dtype=jnp.int32)[None, :] * jnp.ones((4, 1), jnp.int32)},
        "padding": {"attention_mask": jnp.zeros((4, 12), jnp.int32)},
        "filler rows": {"weight": jnp.zeros(4)},
    }[empty]
    (loss, metrics), grads = gradient_fn()(params, batch, KEY)
    assert loss == metrics["loss"] == metrics["accuracy"] == metrics["weight"] == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), grads)


def test_dropout_follows_the_key_and_is_off_in_evaluation():
    def loss(seed, train):
        return float(gradient_fn(train, 0.5)(make()[1], make_batch(), jax.random.key(seed))[0][0])

    assert loss(0, True) == loss(0, True) != loss(1, True)
    assert loss(0, False) == loss(1, False) != loss(0, True)


def test_the_head_scores_every_position():
    program = str(jax.make_jaxpr(gradient_fn())(make()[1], make_batch(), KEY))
    assert CausalLM().scored(12) == 12 and "f32[4,12,32]" in program


def test_the_config_names_it_and_no_mask_token_is_needed():
    assert tasks.make_task(TaskConfig(name="causal_lm"), None) == CausalLM()
