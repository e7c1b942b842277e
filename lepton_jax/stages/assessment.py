"""How examples become rows of a model, and what its outputs for them are worth: one place for every kind of label."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lepton_jax import hub
from lepton_jax.data import spans
from lepton_jax.data.rows import Rows, encode_examples
from lepton_jax.data.sources import Examples
from lepton_jax.data.tokenizers import Encoded, Tokenizer
from lepton_jax.evaluate import calibration, metrics

Kind = Literal["classes", "sets", "numbers", "spans"]

# What the labels of each task are, see `data.sources`.
KINDS: dict[str, Kind] = {
    "classification": "classes", "multi_label": "sets", "regression": "numbers", "token_classification": "spans"
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples of one split, and what the model gets of them."""

    examples: Examples
    rows: Rows
    encoded: tuple[Encoded, ...] = ()  # of spans: where each token lies in its text
    starts: tuple[np.ndarray, ...] = ()  # of spans: bool [n] a text, whether each token begins a word
    report: dict[str, int] = dataclasses.field(default_factory=dict)  # how many were cut, and how many spans lost


def encode(examples: Examples, tokenizer: Tokenizer, card: hub.Card) -> Part:
    """Returns examples as rows of at most `card.max_length` tokens, with their labels as numbers."""
    kind, texts, pairs = KINDS[card.task.name], examples.texts, examples.pairs
    labels: Any = examples.labels or []
    if kind == "spans":
        return _encode_spans(examples, tokenizer, card)
    if kind == "classes":
        numbers = {label: number for number, label in enumerate(card.labels)}
        targets = np.asarray([numbers[label] for label in labels], np.int32)
    elif kind == "sets":
        targets = np.asarray([[name in chosen for name in card.labels] for chosen in labels], np.float32)
        targets = targets.reshape(len(labels), len(card.labels))
    else:
        targets = np.asarray(labels, np.float32)
    if pairs is None:
        whole = tokenizer.encode(texts)
        room = card.max_length - len(tokenizer.with_specials(np.zeros(0, np.int32)))
        rows = Rows([tokenizer.with_specials(ids[:room]) for ids in whole], targets)
        return Part(examples, rows, report={"truncated": sum(len(ids) > room for ids in whole)})
    encoded = tokenizer.rows(texts, pairs, card.max_length)
    types = [row.type_ids for row in encoded] if card.model.type_vocab_size > 1 else None
    cut = sum(_characters(row, text, pair) for row, text, pair in zip(encoded, texts, pairs, strict=True))
    return Part(examples, Rows([row.ids for row in encoded], targets, types), report={"truncated": cut})
