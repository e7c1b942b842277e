"""Masks by their properties, and the loss against a slow float64 reference."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import tasks
from lepton_jax.config import ModelConfig, TaskConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.masked_lm import MaskedLM

SPECIAL, MASK_ID, VOCABULARY = (0, 1, 2, 3, 4), 4, 64
CONFIG = ModelConfig(
    vocab_size=VOCABULARY, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=12,
    initializer_range=0.3,
)  # fmt: skip


def make_task(vocabulary=VOCABULARY, **changes):
    return MaskedLM(TaskConfig(**changes), vocabulary, MASK_ID, SPECIAL)


@functools.cache
def mask_fn(vocabulary=VOCABULARY, **changes):
    return jax.jit(make_task(vocabulary, **changes).mask)


@functools.cache
def make_model(dropout=0.0):
    model = Transformer(dataclasses.replace(CONFIG, dropout=dropout), MaskedLM.head)
    return model, jax.jit(functools.partial(init_params, model))(jax.random.key(0))


@functools.cache
def loss_fn(task, train=True, dropout=0.0, gradient=False):
    """Returns a compiled (params, batch, key) -> (loss, metrics), or -> ((loss, metrics), gradients)."""
    model = make_model(dropout)[0]

    def loss(params, batch, key):
        return task.loss(model, params, batch, key, train)

    return jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss)


def make_batch():
    """Two packed documents and padding; one document; no ordinary token; a filler row with ordinary tokens."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (4, 12))
    mask = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12, [1] * 2 + [0] * 10, [1] * 12])
    ids[:, 0], ids[0, 5], ids[2, 1] = 2, 2, 3
    ids[mask == 0] = 0
    positions = np.array([[*range(5), *range(4), 0, 0, 0], [*range(12)], [0, 1] + [0] * 10, [*range(12)]])
    batch = {"token_ids": ids, "attention_mask": mask, "positions": positions}
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}
    return {**batch, "weight": jnp.asarray([1.0, 1.0, 1.0, 0.0])}


# --- masks


@st.composite
def rows(draw):
    """Returns (mask rate, token ids, attention mask) of 3 rows, with special tokens anywhere and padding at the end."""
    length, rate = draw(st.sampled_from([(5, 0.9), (20, 0.15), (20, 0.5)]))
    ids = draw(st.lists(st.lists(st.integers(0, 12), min_size=length, max_size=length), min_size=3, max_size=3))
    used = draw(st.lists(st.integers(0, length), min_size=3, max_size=3))
    # What lies in the padding may be an ordinary token: the mask decides.
    return rate, np.array(ids, np.int32), (np.arange(length) < np.array(used)[:, None]).astype(np.int32)


@settings(deadline=None, max_examples=80)
@given(rows(), st.integers(0, 2**31 - 1))
def test_masks_by_their_properties(drawn, seed):
    rate, ids, mask = drawn
    length = ids.shape[1]
    inputs, predict, targets, weight = map(np.asarray, mask_fn(mask_rate=rate)(jax.random.key(seed), ids, mask))
    assert predict.shape == targets.shape == weight.shape == (3, math.ceil(rate * length))
    assert inputs.dtype == targets.dtype == np.int32 and weight.dtype == np.float32
    assert set(weight.flat) <= {0.0, 1.0}
    for row in range(3):
        assert len(set(predict[row])) == len(predict[row]), "a position is named once"
        assert set(predict[row]) <= set(range(length))
        ordinary = (mask[row] > 0) & ~np.isin(ids[row], SPECIAL)
        chosen = predict[row][weight[row] > 0]
        assert ordinary[chosen].all(), "a special token or padding was chosen"
        count = int(ordinary.sum())
        assert len(chosen) == (max(1, round(float(np.float32(rate) * np.float32(count)))) if count else 0)
        np.testing.assert_array_equal(targets[row], ids[row][predict[row]])
        changed = np.flatnonzero(inputs[row] != ids[row])
        assert set(changed) <= set(chosen), "a position that is not predicted was changed"
        assert all(token == MASK_ID or token not in SPECIAL for token in inputs[row][changed])


def test_the_same_key_gives_the_same_masks_and_another_key_others():
    batch = make_batch()
    first, again, other = (
        mask_fn(mask_rate=0.5)(jax.random.key(seed), batch["token_ids"], batch["attention_mask"]) for seed in (0, 0, 1)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).any() and (first[1] != other[1]).any()


def test_rows_have_masks_of_their_own():
    ids = jnp.full((64, 12), 9, jnp.int32)
    predict = np.asarray(mask_fn(mask_rate=0.25)(jax.random.key(0), ids, jnp.ones_like(ids))[1])
    assert len({tuple(sorted(row)) for row in predict}) > 30


def test_shares_of_masked_random_and_kept_tokens():
    """Bounds of five standard deviations."""
    vocabulary = 1005
    ids = jnp.full((3000, 20), 7, jnp.int32)
    mask = mask_fn(vocabulary, mask_token_share=0.6, random_token_share=0.25)
    inputs, predict, _, weight = map(np.asarray, mask(jax.random.key(3), ids, jnp.ones_like(ids)))
    assert weight.all() and predict.shape == (3000, 3)
    hidden = np.take_along_axis(inputs, predict, axis=1).ravel()
    n = hidden.size
    for found, share in (
        (hidden == MASK_ID, 0.6),
        ((hidden != MASK_ID) & (hidden != 7), 0.25 * 999 / 1000),  # a random token can be the true one
        (hidden == 7, 0.15 + 0.25 / 1000),
    ):
        assert abs(found.mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
    random = hidden[(hidden != MASK_ID) & (hidden != 7)]
    assert random.min() == 5 and 1000 <= random.max() <= 1004
    assert abs(random.mean() - 504.5) < 5 * 289 / math.sqrt(len(random)), "every ordinary token is as likely"
    chosen = np.bincount(predict.ravel(), minlength=20)
    assert np.abs(chosen / 3000 - 0.15).max() < 5 * math.sqrt(0.15 * 0.85 / 3000), "every position is as likely"


@pytest.mark.parametrize(("masked", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_of_all_or_nothing(masked, random):
    ids = jnp.full((50, 20), 63, jnp.int32)
    mask = mask_fn(mask_token_share=masked, random_token_share=random)
    inputs, predict, targets, _ = mask(jax.random.key(0), ids, jnp.ones_like(ids))
    hidden = np.take_along_axis(np.asarray(inputs), np.asarray(predict), axis=1)
    np.testing.assert_array_equal(targets, 63)
    if masked:
        assert (hidden == MASK_ID).all()
    elif random:
        assert len(np.unique(hidden)) > 20 and not np.isin(hidden, SPECIAL).any()
    else:
        assert (hidden == 63).all()


def test_random_tokens_stay_in_the_tokenizers_vocabulary():
    """The model's table is rounded up; the rows beyond the tokenizer's size are never fed."""
    ids = jnp.full((500, 20), 7, jnp.int32)
    inputs = mask_fn(9, mask_token_share=0.0, random_token_share=1.0)(jax.random.key(0), ids, jnp.ones_like(ids))[0]
    assert set(np.unique(inputs)) == {5, 6, 7, 8}


def test_random_tokens_are_ordinary_wherever_the_special_ones_are():
    """XLM-R has its mask token at the end, BERT all of them in the middle."""
    ids = jnp.full((500, 20), 7, jnp.int32)
    for special in ((1, 3, 0, 2, 11), (0, 5, 6, 8, 9), (10, 11)):
        task = MaskedLM(TaskConfig(mask_token_share=0.0, random_token_share=1.0), 12, special[-1], special)
        inputs = jax.jit(task.mask)(jax.random.key(0), ids, jnp.ones_like(ids))[0]
        assert set(np.unique(inputs)) == {*range(12)} - {*special}


def test_a_tokenizer_without_a_mask_token_is_refused():
    gpt2 = types.SimpleNamespace(pad_id=0, unk_id=0, cls_id=None, sep_id=None, mask_id=None, vocab_size=9)
    with pytest.raises(UserError, match=r"config\.task\.name='masked_lm': the tokenizer has no mask token"):
        tasks.make_task(TaskConfig(), gpt2)
    task = tasks.make_task(TaskConfig(), types.SimpleNamespace(**{**vars(gpt2), "mask_id": 4}))
    assert isinstance(task, MaskedLM) and task.special == (0, 4)


# --- the loss


def test_loss_and_accuracy_equal_the_float64_reference():
    params = make_model()[1]
    batch, task, key = make_batch(), make_task(mask_rate=0.4), jax.random.key(1)
    inputs, predict, targets, weight = map(
        np.asarray, mask_fn(mask_rate=0.4)(rngs.stream(key, "mask"), batch["token_ids"], batch["attention_mask"])
    )
    assert (inputs != np.asarray(batch["token_ids"])).sum() >= 4 and weight[3].sum() > 0
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    losses, correct = [], []
    for row in range(3):  # row 3 has weight 0
        hidden = reference.encode(
            CONFIG, exact, inputs[row], np.asarray(batch["attention_mask"][row]), np.asarray(batch["positions"][row])
        )
        logits = reference.masked_lm_logits(CONFIG, exact, hidden)
        for at, target in zip(predict[row][weight[row] > 0], targets[row], strict=False):
            losses.append(math.log(np.exp(logits[at]).sum()) - logits[at, target])
            correct.append(logits[at].argmax() == target)
    (loss, metrics), _ = loss_fn(task, gradient=True)(params, batch, key)
    assert np.std(losses) > 0.1 and metrics.keys() == {"loss", "accuracy", "weight"}
    assert loss.dtype == jnp.float32 and metrics["weight"] == len(losses) == weight[:3].sum()
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose([metrics["loss"], metrics["accuracy"]], [loss, np.mean(correct)], rtol=1e-6)


def test_accuracy_counts_right_predictions():
    """A head that always says 9, on one row of nines and two without any."""
    params = jax.tree.map(jnp.zeros_like, make_model()[1])
    params["head"]["bias"] = params["head"]["bias"].at[9].set(5.0)
    ids = jnp.asarray([[9] * 12, [8] * 12, [8] * 12, [9] * 12], jnp.int32)  # the last row has weight 0
    batch = {**make_batch(), "token_ids": ids, "attention_mask": jnp.ones((4, 12), jnp.int32)}
    (_, metrics), _ = loss_fn(make_task(mask_rate=0.4), gradient=True)(params, batch, jax.random.key(0))
    assert metrics["weight"] == 15 and metrics["accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("empty", ["special tokens", "padding", "filler rows"])
def test_without_a_position_to_predict_loss_and_gradient_are_zero(empty):
    params, batch, key = make_model()[1], make_batch(), jax.random.key(0)
    gradient = loss_fn(make_task(mask_rate=0.4), gradient=True)
    assert gradient(params, batch, key)[0][0] > 0
    batch |= {
        "special tokens": {"token_ids": batch["token_ids"] % 5},
        "padding": {"attention_mask": jnp.zeros((4, 12), jnp.int32)},
        "filler rows": {"weight": jnp.zeros(4)},
    }[empty]
    (loss, metrics), grads = gradient(params, batch, key)
    assert loss == metrics["loss"] == metrics["accuracy"] == metrics["weight"] == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), grads)


def test_the_same_key_gives_the_same_loss_and_evaluation_has_no_dropout():
    params, batch, task = make_model()[1], make_batch(), make_task(mask_rate=0.25)

    def loss(seed, train, dropout=0.5):
        return float(loss_fn(task, train, dropout)(params, batch, jax.random.key(seed))[0])

    assert loss(0, True) == loss(0, True) != loss(1, True)
    assert loss(0, False) != loss(0, True) and loss(0, False) != loss(1, False), "masks differ in evaluation too"
    assert loss(0, False) == pytest.approx(loss(0, True, dropout=0.0), rel=1e-6)


def test_the_head_runs_on_the_budget_alone():
    gradient = loss_fn(make_task(mask_rate=0.4), gradient=True)
    program = str(jax.make_jaxpr(gradient)(make_model()[1], make_batch(), jax.random.key(0)))
    assert "f32[4,5,64]" in program, "logits of 5 positions a row"
    assert "f32[4,12,64]" not in program and "f32[48,64]" not in program
