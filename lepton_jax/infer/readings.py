"""What the outputs of a program say, as a person reads it: one function for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.data.spans import Word, decode
from lepton_jax.evaluate.metrics import softmax
from lepton_jax.infer.signature import Signature

# Of a classifier {"label", "score", "scores"}, of a multi-label one {"labels", "scores"}, of a regressor {"score"}, of
# a token classifier {"entities": [{"start", "end", "label", "score", "text"}]}, of a filler of masks
# {"masks": [{"start", "end", "tokens": [{"token", "score"}]}]}, of an encoder {"embedding": [float]}. Besides, each may
# have a "warning"; and what is no text has {"error"} alone.
Prediction = dict[str, Any]


def scores(signature: Signature, outputs: np.ndarray) -> np.ndarray:
    """Returns probabilities of the labels, a number, or an embedding: float64 [..., C], of outputs [..., C]."""
    scaled = outputs.astype(np.float64) * signature.scale + signature.offset
    if signature.task in ("regression", "embedding"):
        return scaled
    if signature.task == "multi_label":
        return 1 / (1 + np.exp(-scaled))
    return softmax(scaled)


def read(
    signature: Signature, outputs: Sequence[np.ndarray], texts: Sequence[str], words: Sequence[Sequence[Word]] = ()
) -> list[Prediction]:
    """Returns a prediction a text, of any task but "masked_lm", which `masks` reads.

    Args:
      signature: of the program.
      outputs: [C] a text, or [T, C] of its tokens.
      texts: what they are of.
      words: of a token classifier, see `data.spans.words_of`.
    """
    if signature.classifies_tokens:
        return [
            {"entities": [
                {"start": start, "end": end, "label": name, "score": score, "text": text[start:end]}
                for start, end, name, score in decode(own, scores(signature, output), signature.labels)
            ]}
            for output, text, own in zip(outputs, texts, words, strict=True)
        ]  # fmt: skip
    if not len(outputs):
        return []
    if signature.task == "embedding":
        return [{"embedding": output.tolist()} for output in outputs]
    table = scores(signature, np.stack(outputs))
    if signature.task == "regression":
        return [{"score": float(row[0])} for row in table]
    named = [dict(zip(signature.labels, map(float, row), strict=True)) for row in table]
    if signature.task == "multi_label":
        return [{"labels": [name for name, p in each.items() if p > 0.5], "scores": each} for each in named]
    best = table.argmax(-1)
    return [
        {"label": signature.labels[number], "score": float(row[number]), "scores": each}
        for number, row, each in zip(best.tolist(), table, named, strict=True)
    ]


def in_short(prediction: Prediction) -> tuple[Any, float]:
    """Returns (what is predicted, its score) of a prediction: a label, labels, a number, [start, end, label] lists, or
    the tokens of masks.

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
    if "masks" in prediction:
        first = [mask["tokens"][0] for mask in prediction["masks"]]
        return [each["token"] for each in first], min((each["score"] for each in first), default=1.0)
    return prediction["score"], prediction["score"]
