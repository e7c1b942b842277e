"""Objectives, one a file. A task is the one extension point of training; `make_task` picks it by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lepton_jax.config import TaskConfig
from lepton_jax.core import rules
from lepton_jax.core.errors import UserError
from lepton_jax.data.rows import Labels
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks.causal_lm import CausalLM
from lepton_jax.tasks.classification import Classification
from lepton_jax.tasks.losses import ClassLoss, balanced
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.tasks.multi_label import MultiLabel
from lepton_jax.tasks.regression import Regression
from lepton_jax.tasks.token_classification import TokenClassification

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """What training needs to know of an objective.

    One with a second network, a frozen teacher or a generator, is trained with a model that has both as submodules and
    an `on` of its own: their parameters are one tree, of which `optim.frozen` may hold a part still.
    """

    @property
    def head(self) -> Head:
        """The model's head that it trains."""
        ...

    @property
    def num_outputs(self) -> int:
        """Of that head."""
        ...

    def scored(self, length: int) -> int:
        """Returns how many positions of a row of `length` a language-model head scores; 0 for other heads."""
        ...

    def loss(
        self, model: Transformer, params: Any, batch: Batch, rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss, float32 [], and float32 [] metrics.

        Loss and metrics are means over targets (predicted positions, or rows); `metrics["weight"]` is their
        number, by which means over parts of a batch, or over batches, combine exactly. Without any target, all are 0.

        Args:
          model: its `apply` takes `{"params": params}`.
          params: a parameter tree; its weights may have any form.
          batch: arrays with a leading axis of rows.
          rng: a typed key; the same key gives the same masks and the same dropout.
          train: whether dropout is active.
        """
        ...


def make_task(
    config: TaskConfig,
    tokenizer: Any,
    *,
    packed: bool = True,
    labels: Sequence[str] = (),
    targets: Labels | None = None,
) -> Task:
    """Returns the task that the config names.

    Args:
      config: the task's section.
      tokenizer: of the model.
      packed: whether a row may hold several documents that do not see each other.
      labels: the names of the outputs of a classifier.
      targets: the labels of the training rows; None: unknown yet, in which case classes weigh the same.

    Raises:
      UserError: masked language modelling with a tokenizer that has no mask token; a weight of a class that the data
        do not have.
    """
    if config.name == "masked_lm":
        if tokenizer.mask_id is None:
            raise UserError("config.task.name='masked_lm': the tokenizer has no mask token; train one, or use another")
        special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        known = tuple(dict.fromkeys(token for token in special if token is not None))
        words = tuple(tokenizer.word_starts.tolist()) if config.mask_unit == "word" else ()
        return MaskedLM(config, tokenizer.vocab_size, tokenizer.mask_id, known, words, packed)
    if config.name == "causal_lm":
        return CausalLM(packed)
    if config.name == "regression":
        offset, scale = standard(targets)
        return Regression(offset, scale, packed)
    form = ClassLoss(config.label_smoothing, config.focal_gamma, _class_weights(config.class_weights, labels, targets))
    classes = {
        "classification": Classification, "multi_label": MultiLabel, "token_classification": TokenClassification
    }  # fmt: skip
    return classes[config.name](len(labels), packed, form)


def _class_weights(rule: str, labels: Sequence[str], targets: Labels | None) -> tuple[float, ...] | None:
    """Returns the weight of each class; None: all weigh the same."""
    if rule == "none" or targets is None:
        return None
    if rule == "balanced":
        return balanced(targets, len(labels))
    given = rules.weights(rule, "config.task.class_weights")
    for name in given.keys() - set(labels):
        raise UserError(
            f"config.task.class_weights={rule!r}: no class is named {name!r}; there are {', '.join(labels)}"
        )
    return tuple(given.get(name, 1.0) for name in labels)


def standard(targets: Labels | None) -> tuple[float, float]:
    """Returns the mean of numbers and their standard deviation, 1 where they are all the same."""
    if targets is None:
        return 0.0, 1.0
    numbers = np.asarray(targets, np.float64)
    return float(numbers.mean()), float(numbers.std()) or 1.0
