"""Metrics over a data set in which every row counts exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lepton_jax.core import rng as rngs
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import Metrics, Task

Evaluate = Callable[[Any, Iterable[dict[str, np.ndarray]]], dict[str, float]]


def make_evaluate(task: Task, model: Transformer, mesh: Mesh, seed: int = 0) -> Evaluate:
    """Returns (params, batches) -> means over all targets of the batches.

    Batch i always has the same key, so the masked positions are the same at every evaluation. A causal language model
    also has a perplexity, exp(loss). Without a batch, the returned function raises UserError.
    """

    @jax.jit
    def metrics_of(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> Metrics:
        return task.loss(model.on(mesh), params, batch, key, train=False)[1]

    def evaluate(params: Any, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
        key = jax.random.key(seed)
        pending = [
            metrics_of(params, sharding.put_batch(batch, mesh), rngs.stream(key, "evaluate", index))
            for index, batch in enumerate(batches)
        ]
        if not pending:
            raise UserError("the validation data hold no tokens, so nothing can be evaluated; use other or more data")
        parts = jax.device_get(pending)
        weight = sum(float(part["weight"]) for part in parts)
        means = {
            name: sum(float(part[name]) * float(part["weight"]) for part in parts) / max(weight, 1.0)
            for name in parts[0]
            if name != "weight"
        }
        if task.head == "causal_lm":
            means["perplexity"] = float(np.exp(means["loss"]))
        return means

    return evaluate
