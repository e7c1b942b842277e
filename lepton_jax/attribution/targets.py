"""Which of a model's outputs is explained: a class of a text, its number, or the classes of some of its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jax import hub
from lepton_jax.core.errors import UserError, nearest
from lepton_jax.data.spans import OUTSIDE, Word

Span = Mapping[str, Any]  # {"start": int, "end": int, "label": str}, as a predictor gives them


def of_texts(
    card: hub.Card, target: str | Sequence[str] | None, outputs_NxC: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Returns (float32 [N, C] with a 1 at the output of each text that is explained, its name).

    Args:
      card: of a model with the head "classification".
      target: a label for all texts, or one each; None: the likeliest one of each text, or the number.
      outputs_NxC: of the texts.

    Raises:
      UserError: an unknown label, not as many as texts, or a label for a number.
    """
    count = len(outputs_NxC)
    if card.task.name == "regression":
        if target is not None:
            raise UserError(f"target={target!r}: the model gives a number, not labels; leave target out")
        return np.ones((count, 1), np.float32), ["number"] * count
    if target is None:
        numbers = outputs_NxC.argmax(-1).tolist()
    else:
        chosen = [target] * count if isinstance(target, str) else list(target)
        if len(chosen) != count:
            raise UserError(f"target: {len(chosen)} labels for {count} texts; give one each, or one for all")
        for label in chosen:
            if label not in card.labels:
                raise UserError(f"target={label!r}: not a label of the model; {nearest(str(label), list(card.labels))}")
        numbers = [card.labels.index(label) for label in chosen]
    return np.eye(outputs_NxC.shape[-1], dtype=np.float32)[numbers], [card.labels[number] for number in numbers]


def of_words(
    card: hub.Card, target: str | Sequence[Span] | None, outputs_NxTxC: np.ndarray, words: Sequence[Sequence[Word]]
) -> tuple[np.ndarray, list[str]]:
    """Returns (float32 [N, T, C], whose sum with the outputs is the mean over words that is explained, its name).

    Args:
      card: of a model with the head "token_classification".
      target: a span of each text. None: whatever the model says of the words that it takes for part of a span; of a
        text without any, of all words.
      outputs_NxTxC: of the texts.
      words: of the texts, see `data.spans.words_of`.

    Raises:
      UserError: not as many spans as texts, an unknown type, a span without words, or a text without any.
    """
    if target is not None and (isinstance(target, (str, Mapping)) or len(target) != len(words)):
        raise UserError('target: a classifier of tokens needs a span {"start", "end", "label"} for each text, such as '
                        "those that a predictor finds")  # fmt: skip
    select, found = np.zeros(outputs_NxTxC.shape, np.float32), []
    for number, own in enumerate(words):
        if not own:
            raise UserError(f"texts: element {number} has no word, so that no class of a word can be explained")
        if target is None:
            classes = {word: int(outputs_NxTxC[number, word.first].argmax()) for word in own}
            spans = {word: label for word, label in classes.items() if card.labels[label] != OUTSIDE}
            name = "its spans" if spans else "no span"
            chosen = spans or classes
        else:
            chosen, name = _of_span(card.labels, target[number], own), str(target[number]["label"])
        for word, label in chosen.items():
            select[number, word.first, label] = 1 / len(chosen)
        found.append(name)
    return select, found


def _of_span(labels: Sequence[str], span: Span, words: Sequence[Word]) -> dict[Word, int]:
    """Returns word -> number of the class that it has in a span."""
    start, end, kind = span["start"], span["end"], span["label"]
    types = sorted({label[2:] if label[:2] in ("B-", "I-") else label for label in labels} - {OUTSIDE})
    if kind not in types:
        raise UserError(f"target: {kind!r} is not a type of spans of the model; {nearest(str(kind), types)}")
    inside = [word for word in words if word.start < end and start < word.end]
    if not inside:
        raise UserError(f"target: the span {start} to {end} has no word of its text that the model reads")
    first, rest = (f"{mark}-{kind}" if f"{mark}-{kind}" in labels else kind for mark in "BI")
    return {word: labels.index(rest if number else first) for number, word in enumerate(inside)}
