"""What a head is for: its task and the names of its outputs, as a caller asks for it and as `config.json` says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.config import TaskConfig
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Head

# Heads whose outputs people name, and the tasks that each may be for; every other head is for a language model.
LABELLED: Mapping[str, tuple[str, ...]] = {
    "classification": ("classification", "multi_label", "regression"),
    "token_classification": ("token_classification",),
}
_MULTI_LABEL = "multi_label_classification"  # their name


@dataclasses.dataclass(frozen=True)
class Purpose:
    task: str  # a `TaskConfig.name`
    labels: tuple[str, ...] = ()  # in the order of the outputs

    @property
    def config(self) -> TaskConfig:
        """Returns the task's section, of defaults."""
        return TaskConfig(name=self.task)  # pyright: ignore[reportArgumentType]


def choose(head: Head, labels: Sequence[str], task: str | None, own: Purpose | None) -> tuple[Purpose, bool]:
    """Returns (what a head is to be for, whether it must be a new one).

    Args:
      head: the head that is asked for.
      labels: the names of its outputs; (): those of the model's own head.
      task: what it is for; None: what the model's own head is for, else classification.
      own: what the model's head is for; None: its head is another one.

    Raises:
      UserError: a task that is not one of the head, or no names for the outputs of a new head.
    """
    labels, tasks = tuple(labels), LABELLED.get(head, ("causal_lm" if head == "causal_lm" else "masked_lm",))
    if task is not None and task not in tasks:
        raise UserError(f"task={task!r}: the head {head!r} is for {' or '.join(map(repr, tasks))}")
    if head not in LABELLED:
        return Purpose(tasks[0]), own is None
    if task is None and own is not None and not labels:
        return own, False
    task = task or (own.task if own is not None and own.labels else tasks[0])
    if task == "regression":
        if labels:
            raise UserError(f"labels={labels!r}: a regressor has none")
        return Purpose(task), own is None or own.task != task
    labels = labels or (own.labels if own is not None else ())
    if not labels:
        more = ", or task='regression'" if "regression" in tasks else ""
        raise UserError(f"head={head!r}: a new one needs labels: hub.load(source, head, labels){more}")
    wanted = Purpose(task, labels)
    unnamed = own is not None and own.labels == tuple(f"LABEL_{number}" for number in range(len(labels)))
    return wanted, own is None or not (own == wanted or (unnamed and own.task == task))


def read(config: Mapping[str, Any], head: str, where: str) -> Purpose:
    """Returns what the labelled head of a checkpoint of `transformers` is for.

    Raises:
      UserError: names that are none, or a regressor of several numbers; `where` names the file.
    """
    named = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
    try:
        if not isinstance(named, dict):
            raise TypeError(type(named).__name__)
        labels = tuple(str(named[key]) for key in sorted(named, key=int))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{where}: id2label={named!r}: must map numbers to labels") from None
    kind = config.get("problem_type")
    if head == "token_classification":
        return Purpose(head, labels)
    if kind == _MULTI_LABEL:
        return Purpose("multi_label", labels)
    if kind == "regression" or len(labels) == 1:  # as `transformers` takes one output for a number
        if len(labels) > 1:
            raise UserError(f"{where}: problem_type='regression' with {len(labels)} numbers: not supported, only one")
        return Purpose("regression")
    return Purpose("classification", labels)


def write(config: dict[str, Any], head: str, purpose: Purpose) -> None:
    """Puts into a config.json of `transformers` what a labelled head is for; what says so already stays as it is."""
    named = config.get("id2label") or {}
    labels = purpose.labels or (tuple(named.values()) if len(named) == 1 else ("LABEL_0",))
    if named != {str(number): label for number, label in enumerate(labels)}:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
        config.pop("num_labels", None)
    if head == "classification" and read(config, head, "config.json").task != purpose.task:
        kinds = {"multi_label": _MULTI_LABEL, "classification": "single_label_classification"}
        config["problem_type"] = kinds.get(purpose.task, purpose.task)
