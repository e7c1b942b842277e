"""What the outputs of a head say, as a person reads it: one function for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax import hub
from lepton_jax.data.spans import Word, decode
from lepton_jax.evaluate.metrics import softmax

# Of a classifier {"label", "score", "scores"}, of a multi-label one {"labels", "scores"}, of a regressor {"score"}, of
# a token classifier {"entities": [{"start", "end", "label", "score", "text"}]}.
Prediction = dict[str, Any]


def scores(card: hub.Card, outputs: np.ndarray) -> np.ndarray:
    """Returns probabilities of the labels, or a number, float64 [..., C], of what a head gives, [..., C]."""
    scaled = outputs.astype(np.float64) * card.scale + card.offset
    if card.task.name == "regression":
        return scaled
    if card.task.name == "multi_label":
        return 1 / (1 + np.exp(-scaled))
    return softmax(scaled)


def read(
    card: hub.Card, outputs: Sequence[np.ndarray], texts: Sequence[str], words: Sequence[Sequence[Word]] = ()
) -> list[Prediction]:
    """Returns a prediction a text.

    Args:
      card: of the model.
      outputs: of the head, [C] a text, or [T, C] of its tokens.
      texts: what they are of.
      words: of a token classifier, see `data.spans.words_of`.
    """
    if card.task.name == "token_classification":
        return [
            {"entities": [
                {"start": start, "end": end, "label": name, "score": score, "text": text[start:end]}
                for start, end, name, score in decode(own, scores(card, output), card.labels)
            ]}
            for output, text, own in zip(outputs, texts, words, strict=True)
        ]  # fmt: skip
    if not len(outputs):
        return []
    table = scores(card, np.stack(outputs))
    if card.task.name == "regression":
        return [{"score": float(row[0])} for row in table]
    named = [dict(zip(card.labels, map(float, row), strict=True)) for row in table]
    if card.task.name == "multi_label":
        return [{"labels": [name for name, p in each.items() if p > 0.5], "scores": each} for each in named]
    best = table.argmax(-1)
    return [
        {"label": card.labels[number], "score": float(row[number]), "scores": each}
        for number, row, each in zip(best.tolist(), table, named, strict=True)
    ]


def in_short(prediction: Prediction) -> tuple[Any, float]:
    """Returns (what is predicted, its score) of a prediction: a label, labels, a number, or [start, end, label] lists.

    The score of several is that of the least certain one.
    """
    if "label" in prediction:
        return prediction["label"], prediction["score"]
    if "labels" in prediction:
        return prediction["labels"], min((max(p, 1 - p) for p in prediction["scores"].values()), default=1.0)
    if "entities" in prediction:
        found = prediction["entities"]
        spans = [[each["start"], each["end"], each["label"]] for each in found]
        return spans, min((each["score"] for each in found), default=1.0)
    return prediction["score"], prediction["score"]
