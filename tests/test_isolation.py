"""Whether packed documents see each other: from batches, through tasks, to the logits of whole models."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import Config, DataConfig, ModelConfig, TaskConfig
from lepton_jax.data.batches import evaluation_batches
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.forward import forward
from lepton_jax.tasks.masked_lm import MaskedLM

LENGTH, FIRST, SECOND = 16, 6, 7  # of a row, of its two documents
MODELS = {
    "rotary": {"positions": "rotary"},
    "learned": {"positions": "learned", "max_positions": LENGTH + 2, "position_offset": 2},
    "causal": {"causal": True},
    "relative": {"positions": "none", "relative": ("c2p", "p2c"), "relative_span": 16},
    "windows": {"global_every": 2, "local_window": 3},
    "banded": {"global_every": 2, "local_window": 3, "attention": "banded"},
}
DRAW = np.random.default_rng(0)
DOCUMENTS = [DRAW.integers(5, 32, size).astype(np.int32) for size in (FIRST, SECOND)]


def make_config(isolate, **model):
    settings = {
        "vocab_size": 32, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24,
        "max_positions": LENGTH, "initializer_range": 0.3,
    }  # fmt: skip
    return Config(model=ModelConfig(**(settings | model)), data=DataConfig(max_length=LENGTH, isolate=isolate))


@functools.cache
def make_model(name):
    model = Transformer(make_config(True, **MODELS[name]).model, "masked_lm")
    return model, jax.jit(functools.partial(init_params, model))(jax.random.key(0))


def make_batch(documents, isolate):
    (batch,) = evaluation_batches(documents, 1, LENGTH, pack=True, isolate=isolate, pad_id=0)
    assert batch["token_ids"][0].tolist() == [*documents[0], *documents[1], 0, 0, 0]
    return {name: jnp.asarray(value) for name, value in batch.items()}


@functools.cache
def apply(name, packed):
    model, params = make_model(name)
    return jax.jit(lambda batch: forward(model, params, batch, None, False, packed=packed)["logits"][0])


def logits_of(name, documents, isolate):
    """Returns the logits of each of the two documents, as a training with such a config computes them."""
    logits = np.asarray(apply(name, make_config(isolate).isolates)(make_batch(documents, isolate)))
    return logits[:FIRST], logits[FIRST : FIRST + SECOND]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_document_moves_with_the_one_before_it_only_without_isolation(name, isolate):
    other = [DOCUMENTS[0][::-1].copy(), DOCUMENTS[1]]
    (first, second), (first_moved, second_moved) = (logits_of(name, each, isolate) for each in (DOCUMENTS, other))
    assert np.abs(first - first_moved).max() > 0.01, "the perturbation does something"
    if isolate:
        np.testing.assert_array_equal(second, second_moved)
    else:
        assert (np.abs(second - second_moved).max(1) > 1e-5).all()


@pytest.mark.parametrize("name", MODELS)
def test_without_isolation_a_row_is_one_document(name):
    """Of both documents joined: the same tokens, positions and neighbours. Padding is unseen, whatever is there."""
    joined = [np.concatenate(DOCUMENTS)]
    (batch,) = evaluation_batches(joined, 1, LENGTH, pack=False, pad_id=0)
    alone = np.asarray(apply(name, False)({key: jnp.asarray(value) for key, value in batch.items()}))
    found = np.concatenate(logits_of(name, DOCUMENTS, False))
    np.testing.assert_array_equal(found, alone[: FIRST + SECOND])
    apart = np.concatenate(logits_of(name, DOCUMENTS, True))
    assert np.abs(apart - found).max() > 0.01
    batch = make_batch(DOCUMENTS, False)
    filled = batch | {"token_ids": batch["token_ids"].at[0, FIRST + SECOND :].set(9)}
    np.testing.assert_array_equal(apply(name, False)(filled)[: FIRST + SECOND], found)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_backend_may_rely_on_holds(name):
    """Rows without isolation are promised to be one segment and padding at its right; segments say the same."""
    batch = make_batch(DOCUMENTS, False)
    assert not make_config(False).isolates and make_config(True).isolates
    assert not dataclasses.replace(make_config(True), data=DataConfig(batching="padded")).isolates
    assert batch["attention_mask"].tolist() == [[1] * (FIRST + SECOND) + [0] * 3]
    assert batch["positions"].tolist() == [[*range(FIRST + SECOND), 0, 0, 0]]
    assert int(batch["positions"].max()) < MODELS[name].get("max_positions", LENGTH)
    real = slice(0, FIRST + SECOND)
    np.testing.assert_allclose(apply(name, False)(batch)[real], apply(name, True)(batch)[real], atol=1e-5)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masks_are_the_same_with_and_without_isolation(unit):
    """A word or a span ends with its document, though here no token says that another begins."""
    starts = tuple(token % 3 == 0 for token in range(32))
    config = TaskConfig(mask_rate=0.4, mask_unit=unit, span_length=6.0, mask_token_share=1.0, random_token_share=0.0)
    task = MaskedLM(config, 32, 4, (0, 1, 2, 3, 4), starts, packed=False)

    class Watched:
        """In place of a model: keeps what it is to look at."""

        def __init__(self):
            self.seen = []

        def apply(self, variables, token_ids, *arguments, predict, **options):
            self.seen.append(token_ids.tolist())
            return {"logits": jnp.zeros((*predict.shape, 32))}

    def hidden(batch):
        model = Watched()
        for seed in range(12):
            task.loss(model, {}, batch, jax.random.key(seed))
        return model.seen

    apart, together = (hidden(make_batch(DOCUMENTS, isolate)) for isolate in (True, False))
    assert apart == together and len(set(map(str, apart))) > 3
    unnumbered = {name: value for name, value in make_batch(DOCUMENTS, False).items() if name != "documents"}
    assert (hidden(unnumbered) == apart) == (unit == "token"), "it is the numbers that end a word or a span"
