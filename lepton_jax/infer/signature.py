"""What a predictor is for: what its program takes, and what comes out of it. Knows no model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lepton_jax.core.errors import UserError
from lepton_jax.core.fields import build

if TYPE_CHECKING:
    from lepton_jax.hub import Card

# The tasks of labels are those of `config.TaskConfig`; "masked_lm" fills masks, "embedding" gives a text's vector.
TASKS = ("classification", "multi_label", "regression", "token_classification", "masked_lm", "embedding")


@dataclasses.dataclass(frozen=True)
class Signature:
    """What readers of texts and of outputs need to know of a program."""

    task: str  # one of TASKS
    max_length: int  # tokens of a row, special ones included
    labels: tuple[str, ...] = ()  # of a classifier, in the order of its outputs
    num_outputs: int = 0  # of a text or token
    typed: bool = False  # whether the program takes token types
    # Scores come from outputs, times `scale`, plus `offset`, see `hub.Card`.
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, card: Card, task: str | None = None) -> Signature:
        """Returns the signature of a model for a task; None: that of its head.

        Raises:
          UserError: no such task, or the model's head is for another one.
        """
        own = {"none": "embedding", "pooler": "embedding"}.get(card.head, card.task.name)
        if task is not None and task not in TASKS:
            raise UserError(f"task={task!r}: must be one of {', '.join(map(repr, TASKS))}")
        if own not in TASKS and task != "embedding":
            raise UserError(f"the model has the head {card.head!r} and predicts no labels; fine-tune it first, or take "
                            f"task='embedding'")  # fmt: skip
        if task not in (None, own, "embedding"):
            raise UserError(f"task={task!r}: the model's head is for {own!r}; take that, or 'embedding'")
        task = task or own
        typed = card.model.type_vocab_size > 1
        if task == "embedding":
            return cls(task, card.max_length, num_outputs=card.model.hidden_size, typed=typed)
        return cls(task, card.max_length, card.labels, card.num_outputs, typed, card.scale, card.offset)

    @classmethod
    def read(cls, tree: Any, where: str) -> Signature:
        """Returns the signature that `dataclasses.asdict` made this tree of, after JSON.

        Raises:
          UserError: it is another tree; `where` names the file.
        """
        if not isinstance(tree, dict) or not isinstance(tree.get("labels"), list):
            raise UserError(f"{where}: not the signature of a predictor of this version")
        return build(cls, tree | {"labels": tuple(tree["labels"])}, where)

    @property
    def classifies_tokens(self) -> bool:
        return self.task == "token_classification"
