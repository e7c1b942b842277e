"""What a model says of a data set: means over all targets, or the outputs of each row. Every row counts once."""

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
from lepton_jax.tasks.labelled import LabelledTask

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


def make_outputs(task: LabelledTask, model: Transformer, mesh: Mesh) -> Callable[..., list[np.ndarray]]:
    """Returns (params, batches, order) -> the outputs of each row, float32 [C] or of tokens [T, C], in their own order.

    `order` names the rows in the order in which the batches have them (`batches.evaluation_order`); what comes after
    these only fills the last batch. Every process gets the outputs of all rows.
    """

    def outputs_of(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return task.outputs(model.on(mesh), params, batch)

    compiled = jax.jit(outputs_of, out_shardings=sharding.replicated(mesh))

    def outputs(params: Any, batches: Iterable[dict[str, np.ndarray]], order: np.ndarray) -> list[np.ndarray]:
        pending = [compiled(params, sharding.put_batch(batch, mesh)) for batch in batches]
        found = [row for part in pending for row in np.asarray(part.addressable_data(0))]
        rows: list[np.ndarray] = [found[0]] * len(order)
        for place, row in zip(order.tolist(), found[: len(order)], strict=True):
            rows[place] = row
        return rows

    return outputs
