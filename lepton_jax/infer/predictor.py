"""The predictor: texts in, labels out, through one jitted function over parameters of any form."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import hub
from lepton_jax.compress import quantize_int8
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.rows import Rows, encode_examples
from lepton_jax.data.spans import Word, words_of
from lepton_jax.infer import readings, windows
from lepton_jax.infer.readings import Prediction
from lepton_jax.models.transformer import Transformer, unstack

Precision = Literal["float32", "bfloat16", "int8"]

_HEADS = ("classification", "token_classification")


def load(folder: str | Path, precision: Precision = "float32", config: InferConfig | None = None) -> Predictor:
    """Loads the trained model of a WORKDIR as a predictor.

    Args:
      folder: see `hub.load`.
      precision: "float32"; "bfloat16" (parameters and computation); "int8" (weights per output channel, activations
        per token, or as a calibrated int8 model has them, accumulated in int32; the rest float32). A folder with int8
        weights loads as int8 only.
      config: buckets and batch size.

    Raises:
      UserError: no such precision, no trained head in the folder, or int8 weights asked for as float.
    """
    return Predictor(hub.load(folder), precision, config)


class Predictor:
    """Predicts texts: `predictor(["a text", ...])`, or pairs of them: `predictor(texts, pairs)`.

    Texts are sorted by length and padded to the smallest bucket that holds them, so that there is one
    executable a bucket and results do not depend on the company a text arrives in.
    """

    def __init__(self, bundle: hub.Bundle, precision: Precision = "float32", config: InferConfig | None = None):
        if precision not in ("float32", "bfloat16", "int8"):
            raise UserError(f"precision={precision!r}: must be float32, bfloat16 or int8")
        if bundle.card.head not in _HEADS:
            raise UserError(f"the model has the head {bundle.card.head!r} and predicts no labels; fine-tune it first")
        if bundle.card.weights == "int8" and precision != "int8":
            raise UserError(f"the folder holds int8 weights, which load as int8, not as {precision}")
        if bundle.tokenizer is None:
            raise UserError("the folder has no tokenizer, which texts need; put its files beside the weights")
        config = config or InferConfig()
        self.bundle = bundle
        self.tokenizer = bundle.tokenizer
        self.card = bundle.card
        self.precision = precision
        self.batch_size = config.batch_size
        self.max_length = bundle.card.max_length
        self.lengths = (*(length for length in config.lengths if length < self.max_length), self.max_length)
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        self.model = bundle.model.clone(config=dataclasses.replace(bundle.config, dtype=dtype, attention="auto"))
        self.params = unstack(convert(bundle, precision))
        self.forward: Callable[..., jax.Array] = jax.jit(partial(forward, self.model))

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Returns one dict a text, or a pair of texts, in order.

        A classifier gives `{"label": str, "score": float, "scores": {label: float}}`, a multi-label one
        `{"labels": [str], "scores": {label: float}}` with those above 0.5, a regressor `{"score": float}`, a token
        classifier `{"entities": [{"start": int, "end": int, "label": str, "score": float, "text": str}]}` with
        character offsets. Scores of labels are probabilities.

        A token classifier reads a text of any length, in windows that overlap, see `windows.cut`. Otherwise, and where
        texts have pairs, what lies beyond the model's length is not looked at.

        Raises:
          UserError: `texts` or `pairs` is one string, an element is not a string, or they are not as many.
        """
        if self.card.head == "token_classification" and pairs is None:
            return self._read_in_windows(texts)
        rows, words = self.encode(texts, pairs)
        return readings.read(self.card, self._run(rows), texts, words)

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Returns float64 [len(texts), C] of a head over whole texts: probabilities of the labels, or the number.

        Raises:
          UserError: as for a call; or the model classifies tokens.
        """
        if self.card.head == "token_classification":
            raise UserError("predictor.scores(texts): a token classifier has no scores of whole texts; call it instead")
        outputs = self.outputs(texts, pairs)
        return readings.scores(self.card, np.stack(outputs) if outputs else np.zeros((0, self.card.num_outputs)))

    def outputs(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Returns what the head gives for each text, float32 [C], or [T, C] of its tokens, before `card.scale`.

        The rows are those of `encode`, so that tokens beyond the model's length have none; T counts padding, too.
        """
        return self._run(self.encode(texts, pairs)[0])

    def _read_in_windows(self, texts: Sequence[str]) -> list[Prediction]:
        _check(texts, None)
        encoded = self.tokenizer.rows(texts)
        words = [words_of(row, text) for row, text in zip(encoded, texts, strict=True)]
        cuts = [windows.cut(row, own, self.max_length) for row, own in zip(encoded, words, strict=True)]
        outputs = iter(self._run(Rows([window.ids for own in cuts for window in own])))
        whole = [
            windows.join(own, [next(outputs) for _ in own], len(row), self.card.num_outputs)
            for row, own in zip(encoded, cuts, strict=True)
        ]
        return readings.read(self.card, whole, texts, words)

    def _run(self, rows: Rows) -> list[np.ndarray]:
        order = np.argsort(rows.lengths, kind="stable").tolist()
        pending = []
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            pending.append((chosen, self.forward(self.params, *self.pad(rows, chosen))))
        outputs: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        for chosen, out in pending:
            for row, own in zip(chosen, np.asarray(out), strict=False):
                outputs[row] = own
        return outputs

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[Rows, list[list[Word]]]:
        """Returns texts as rows of at most the model's length, and for a token classifier the words that each shows."""
        _check(texts, pairs)
        if pairs is None and self.card.head == "classification":
            return Rows(encode_examples(self.tokenizer, texts, self.max_length)), []
        encoded = self.tokenizer.rows(texts, pairs, self.max_length)
        words = []
        if self.card.head == "token_classification":
            words = [words_of(row, text) for row, text in zip(encoded, texts, strict=True)]
        typed = pairs is not None and self.card.model.type_vocab_size > 1
        return Rows([row.ids for row in encoded], types=[row.type_ids for row in encoded] if typed else None), words

    def pad(self, rows: Rows, chosen: Sequence[int] | None = None) -> tuple[np.ndarray, ...]:
        """Returns (token_ids, attention_mask[, token_type_ids]), int32 [N, T]: rows in their bucket of length and
        batch.

        N is the batch size, or for fewer rows the next power of two; filler rows are all padding.
        """
        chosen = range(len(rows)) if chosen is None else chosen
        longest = int(rows.lengths[list(chosen)].max())
        length = next(bucket for bucket in self.lengths if bucket >= longest)
        count = min(self.batch_size, 1 << (len(chosen) - 1).bit_length())
        columns = [rows.ids] if rows.types is None else [rows.ids, rows.types]
        tables = [np.full((count, length), filler, np.int32) for filler in (self.tokenizer.pad_id, 0)[: len(columns)]]
        mask = np.zeros((count, length), np.int32)
        for index, row in enumerate(chosen):
            for table, column in zip(tables, columns, strict=True):
                table[index, : len(column[row])] = column[row]
            mask[index, : len(rows.ids[row])] = 1
        return tables[0], mask, *tables[1:]


def forward(
    model: Transformer,
    params: Any,
    token_ids: jax.Array,
    attention_mask: jax.Array,
    token_type_ids: jax.Array | None = None,
) -> jax.Array:
    """Returns what the head gives for int32 [N, T] tokens, float32 [N, C] or [N, T, C]; pure, so that it can be jitted,
    lowered and read."""
    out: Any = model.apply({"params": params}, token_ids, attention_mask, token_type_ids=token_type_ids, packed=False)
    return out["logits"].astype(jnp.float32)


def _check(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    for name, given in (("texts", texts), ("pairs", pairs)):
        if isinstance(given, str):
            raise UserError(f"predictor(texts): {name} must be a sequence of strings, not one string")
        for index, text in enumerate(() if given is None else given):
            if not isinstance(text, str):
                raise UserError(f"predictor(texts): {name}[{index}] is {type(text).__name__}, not a string")
    if pairs is not None and len(pairs) != len(texts):
        raise UserError(f"predictor(texts, pairs): {len(texts)} texts, {len(pairs)} pairs; one each")


def convert(bundle: hub.Bundle, precision: Precision) -> Any:
    """Returns the parameters of a bundle in a precision."""
    if precision == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bundle.params)
    if precision == "int8" and bundle.card.weights != "int8":
        return jax.jit(quantize_int8, static_argnums=1)(bundle.params, bundle.card.keep_float)
    return bundle.params


def speedup(
    baseline: Predictor,
    other: Predictor,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    repeats: int = 15,
) -> float:
    """Returns median seconds of `baseline` / median seconds of `other` for one full batch, timed by turns."""
    count = baseline.batch_size
    rows, _ = baseline.encode(texts[:count], None if pairs is None else pairs[:count])
    batch = baseline.pad(rows)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(repeats + 1):
        for which, predictor in enumerate((baseline, other)):
            start = time.perf_counter()
            predictor.forward(predictor.params, *batch).block_until_ready()
            if turn:  # the first turn compiles
                seconds[which].append(time.perf_counter() - start)
    return float(np.median(seconds[0]) / np.median(seconds[1]))
