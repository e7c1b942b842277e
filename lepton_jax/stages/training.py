"""From a card and encoded rows to a trained model: what every stage that trains does alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lepton_jax import hub, processes
from lepton_jax.config import Config
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data import batches
from lepton_jax.data.bucketing import bucket_lengths
from lepton_jax.data.rows import Rows
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.models.transformer import Transformer
from lepton_jax.tasks import make_task
from lepton_jax.tasks.viewed import Viewed
from lepton_jax.train.evaluate import make_evaluate, make_outputs
from lepton_jax.train.forecast import explain_out_of_memory
from lepton_jax.train.loop import check_attention, check_mesh, fit
from lepton_jax.train.ramp import part_rows
from lepton_jax.train.step import make_program

# Batches of a length that is no multiple of this have no fast attention there.
_LENGTH_UNIT = {"cpu": 8}
_OTHER_LENGTH_UNIT = 128

Measure = Callable[[list[np.ndarray]], Mapping[str, float]]


class Trainer:
    """Trains a model on rows, once or for several seeds: what they have in common is made and compiled once."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        card: hub.Card,
        tokenizer: Tokenizer,
        rows: Mapping[str, Rows],
        *,
        measure: Measure | None = None,
        view: Callable[[Any], Any] | None = None,
        sizes: Sequence[int] = (),
        weights: Sequence[float] = (1.0,),
    ):
        """Checks that all of it fits together, before anything is written.

        Args:
          config: the run's.
          mesh: its devices.
          card: of the model.
          tokenizer: of the rows.
          rows: "train" and "validation".
          measure: gives the validation metrics of the outputs of each validation row; None: the task's own means.
          view: gives what training and validation apply in place of the parameters, see `tasks.viewed`; None: these.
          sizes, weights: of a mixture, see `batches.training_batches`.

        Raises:
          UserError: there is nothing to validate on, or the model does not fit the devices.
        """
        self._config, self._mesh, self._tokenizer, self._rows = config, mesh, tokenizer, rows
        self.card = card
        self._mixture = {"sizes": sizes, "weights": weights}
        with processes.together():
            if not len(rows["validation"]):
                raise UserError(
                    "data.validation: there is no example to validate on; name a source, or set data.validation_share "
                    "above 0"
                )
            resolved = dataclasses.replace(config, model=card.model)
            check_mesh(resolved, mesh)
            check_attention(resolved, mesh)
        if jax.process_count() > 1:
            held = " ".join(each.fingerprint for each in rows.values())
            processes.require_equal("other data", f"{tokenizer.fingerprint} {held}")
        self.model = Transformer(card.model, card.head, card.num_outputs)
        labels, targets = card.labels, rows["train"].labels
        task: Any = make_task(config.task, tokenizer, packed=config.isolates, labels=labels, targets=targets)
        self.task: Any = task if view is None else Viewed(task, view)
        self._program = make_program(config, mesh, self.task, self.model)
        unit = _LENGTH_UNIT.get(mesh.devices.flat[0].platform, _OTHER_LENGTH_UNIT) * mesh.shape["sequence"]
        self._buckets = bucket_lengths(card.max_length, unit)
        self._common: dict[str, Any] = {
            "max_length": card.max_length, "pad_id": tokenizer.pad_id, "process_index": jax.process_index()
        }  # fmt: skip
        if measure is None:
            means = make_evaluate(self.task, self.model, mesh)
            self._evaluate = lambda params: means(params, self._evaluation(rows["validation"], config.packs, ()))
        else:
            self._outputs = make_outputs(task, self.model, mesh)
            viewed = self._outputs if view is None else make_outputs(self.task, self.model, mesh)
            self._evaluate = lambda params: measure(self._outputs_of(viewed, params, rows["validation"]))

    def fit(self, folder: Path, seed: int | None = None, init: Any = None) -> hub.Bundle:
        """Trains in a folder, from its newest checkpoint if it has one, and returns the model with its best parameters.

        Args:
          folder: the run's.
          seed: of this run; None: the config's.
          init: parameters to start from, see `train.state.make_state`.
        """
        train = self._config.train if seed is None else dataclasses.replace(self._config.train, seed=seed)
        config = dataclasses.replace(self._config, train=train)
        hub.describe(folder, self.card, self._tokenizer)
        with processes.together():
            part = part_rows(config.train)
            training = batches.training_batches(
                self._rows["train"],
                part,
                pack=config.packs,
                isolate=config.data.isolate,
                buckets=self._buckets if config.data.batching == "bucketed" else (),
                seed=config.train.seed,
                streams=config.data.streams,
                parts=sharding.process_rows(self._mesh, part),
                **self._mixture,
                **self._common,
            )
        try:
            fitted = fit(
                config, folder, mesh=self._mesh, task=self.task, model=self.model, batches=training,
                evaluate=self._evaluate, init=init, program=self._program,
            )  # fmt: skip
        except jax.errors.JaxRuntimeError as error:
            if explanation := explain_out_of_memory(error, config, self._mesh, self.task, self.model):
                raise UserError(explanation) from error
            raise
        return hub.Bundle(self.model, fitted.params, self._tokenizer, self.card)

    def outputs(self, params: Any, rows: Rows) -> list[np.ndarray]:
        """Returns what the head says of each row, see `train.evaluate.make_outputs`: in their order, all of them."""
        return self._outputs_of(self._outputs, params, rows)

    def _outputs_of(self, outputs: Callable[..., list[np.ndarray]], params: Any, rows: Rows) -> list[np.ndarray]:
        order = batches.evaluation_order(rows, self._buckets)
        return outputs(params, self._evaluation(rows, False, self._buckets), order)

    def _evaluation(self, rows: Rows, pack: bool, buckets: Sequence[int]) -> Iterable[batches.Batch]:
        size = self._config.evaluate.batch_size
        return batches.evaluation_batches(
            rows,
            size,
            pack=pack,
            isolate=self._config.data.isolate,
            buckets=buckets,
            parts=sharding.process_rows(self._mesh, size),
            **self._common,
        )
