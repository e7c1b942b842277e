"""Objectives with a second network go through the one train step as it is: a frozen teacher, and a generator."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.config import Config, OptimConfig, TrainConfig
from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.losses import weighted_mean
from lepton_jax.train.state import make_state
from lepton_jax.train.step import make_program


class Pair(nn.Module):
    """Two networks in one tree of parameters, `one` and `other`: what a task with two gets as its model."""

    one: Transformer
    other: Transformer
    mesh: Any = None

    def on(self, mesh):
        return self.clone(one=self.one.on(mesh), other=self.other.on(mesh))

    def __call__(self, token_ids):
        return self.one(token_ids), self.other(token_ids)


def apply(model, params, name, token_ids, batch):
    inputs = (token_ids, batch["attention_mask"])
    return getattr(model, name).apply({"params": params[name]}, *inputs, positions=batch["positions"])["logits"]


@dataclasses.dataclass(frozen=True)
class Distilled:
    """`one` learns the distribution of `other`, whose parameters the config freezes."""

    head: Head = "masked_lm"
    num_outputs: int = 0

    def loss(self, model, params, batch, rng, train=True):
        student, teacher = (apply(model, params, name, batch["token_ids"], batch) for name in ("one", "other"))
        weight = (batch["attention_mask"] > 0) * batch["weight"][:, None]
        loss = weighted_mean(optax.losses.kl_divergence(nn.log_softmax(student), nn.softmax(teacher)), weight)
        return loss, {"loss": loss, "weight": jnp.sum(weight)}


@dataclasses.dataclass(frozen=True)
class ReplacedToken:
    """`other` writes tokens into hidden places, `one` says which are not the true ones (arXiv:2003.10555)."""

    head: Head = "replaced_token"
    num_outputs: int = 0

    def loss(self, model, params, batch, rng, train=True):
        ids = batch["token_ids"]
        real = (batch["attention_mask"] > 0) * batch["weight"][:, None]
        hidden = jax.random.bernoulli(rngs.stream(rng, "mask"), 0.3, ids.shape) & (real > 0)
        logits = apply(model, params, "other", jnp.where(hidden, 4, ids), batch)
        written = weighted_mean(optax.softmax_cross_entropy_with_integer_labels(logits, ids), hidden.astype(float))
        drawn = jax.random.categorical(rngs.stream(rng, "draw"), jax.lax.stop_gradient(logits))
        fed = jnp.where(hidden, drawn, ids)
        scores = apply(model, params, "one", fed, batch)
        told = weighted_mean(optax.sigmoid_binary_cross_entropy(scores, (fed != ids).astype(float)), real)
        loss = written + 10 * told
        return loss, {"loss": loss, "told": told, "weight": jnp.sum(real)}


@pytest.mark.parametrize(("task", "frozen"), [(Distilled(), (r"^other/",)), (ReplacedToken(), ())])
def test_two_networks_in_one_step(training, rows, numbers, task, frozen):
    small = dataclasses.replace(training().config, num_layers=1)
    model: Any = Pair(Transformer(training().config, task.head), Transformer(small, "masked_lm"))
    config = Config(train=TrainConfig(learning_rate=0.03, steps=100), optim=OptimConfig(frozen=frozen))
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    step, abstract, optimizer = make_program(config, mesh, task, model)
    state = make_state(model, optimizer, config.optim, mesh, seed=0)
    before = numbers(state.params)
    batch, losses = sharding.put_batch(rows(), mesh), []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    after = numbers(state.params)
    moved = {path for path in before if (before[path] != after[path]).any()}
    assert {path.split("/")[0] for path in before} == {"one", "other"}
    assert {path.split("/")[0] for path in moved} == ({"one"} if frozen else {"one", "other"})
    assert losses[-1] < 0.9 * losses[0] and np.isfinite(losses).all() and state.skipped == 0
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract.opt_state)]
    assert any("'one'" in path for path in paths) and any("'other'" in path for path in paths) == (not frozen)
