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
from lepton_jax.data.rows import encode_examples
from lepton_jax.models.transformer import Transformer, unstack

Precision = Literal["float32", "bfloat16", "int8"]
Prediction = dict[str, Any]  # of a classifier: label, score, scores; of a regressor: score


def load(folder: str | Path, precision: Precision = "float32", config: InferConfig | None = None) -> Predictor:
    """Loads the classifier or regressor of a WORKDIR as a predictor.

    Args:
      folder: see `hub.load`.
      precision: "float32"; "bfloat16" (parameters and computation); "int8" (weights per output channel,
        activations per token, accumulated in int32; the rest float32). A folder with int8 weights loads as int8 only.
      config: buckets and batch size.

    Raises:
      UserError: no such precision, no trained head in the folder, or int8 weights asked for as float.
    """
    return Predictor(hub.load(folder), precision, config)


class Predictor:
    """Predicts texts: `predictor(["a text", ...])`.

    Texts are sorted by length and padded to the smallest bucket that holds them, so that there is one
    executable a bucket and results do not depend on the company a text arrives in.
    """

    def __init__(self, bundle: hub.Bundle, precision: Precision = "float32", config: InferConfig | None = None):
        if precision not in ("float32", "bfloat16", "int8"):
            raise UserError(f"precision={precision!r}: must be float32, bfloat16 or int8")
        if bundle.card.head != "classification":
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
        self.forward: Callable[..., jax.Array] = jax.jit(partial(forward, self.model, self.card))

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """Returns one dict a text, in order.

        A classifier gives `{"label": str, "score": float, "scores": {label: float}}`, a regressor
        `{"score": float}`. Scores are probabilities; those of the softmax sum to 1.

        Raises:
          UserError: `texts` is one string, or an element is not a string.
        """
        if isinstance(texts, str):
            raise UserError("predictor(texts): texts must be a sequence of strings, not one string")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"predictor(texts): texts[{index}] is {type(text).__name__}, not a string")
        scores = self.scores(texts)
        if self.card.task.name == "regression":
            return [{"score": float(row[0])} for row in scores]
        labels = self.card.labels
        return [
            {
                "label": labels[int(row.argmax())],
                "score": float(row.max()),
                "scores": dict(zip(labels, map(float, row), strict=True)),
            }
            for row in scores
        ]

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [len(texts), outputs]: probabilities of the labels, or the regressor's number."""
        rows = encode_examples(self.tokenizer, texts, self.max_length)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        pending = []
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            pending.append((chosen, self.forward(self.params, *self.pad([rows[index] for index in chosen]))))
        scores = np.zeros((len(rows), self.card.num_outputs), np.float32)
        for chosen, out in pending:
            scores[chosen] = np.asarray(out)[: len(chosen)]
        return scores

    def pad(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (token_ids, attention_mask), int32 [N, T]: the rows in their bucket of length and of batch.

        N is the batch size, or for fewer rows the next power of two; filler rows are all padding.
        """
        longest = max(len(row) for row in rows)
        length = next(bucket for bucket in self.lengths if bucket >= longest)
        count = min(self.batch_size, 1 << (len(rows) - 1).bit_length())
        token_ids = np.full((count, length), self.tokenizer.pad_id, np.int32)
        mask = np.zeros((count, length), np.int32)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return token_ids, mask


def forward(
    model: Transformer, card: hub.Card, params: Any, token_ids: jax.Array, attention_mask: jax.Array
) -> jax.Array:
    """Returns float32 [N, outputs] for int32 [N, T] tokens; pure, so that it can be jitted, lowered and read."""
    out: Any = model.apply({"params": params}, token_ids, attention_mask, packed=False)
    logits = out["logits"].astype(jnp.float32) * card.scale + card.offset
    if card.task.name == "regression":
        return logits
    return jax.nn.sigmoid(logits) if card.task.name == "multi_label" else jax.nn.softmax(logits)


def convert(bundle: hub.Bundle, precision: Precision) -> Any:
    """Returns the parameters of a bundle in a precision."""
    if precision == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bundle.params)
    if precision == "int8" and bundle.card.weights != "int8":
        return jax.jit(quantize_int8, static_argnums=1)(bundle.params, bundle.card.keep_float)
    return bundle.params


def speedup(baseline: Predictor, other: Predictor, texts: Sequence[str], repeats: int = 15) -> float:
    """Returns median seconds of `baseline` / median seconds of `other` for one full batch, timed by turns."""
    rows = encode_examples(baseline.tokenizer, texts, baseline.max_length)[: baseline.batch_size]
    batch = baseline.pad(rows)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(repeats + 1):
        for which, predictor in enumerate((baseline, other)):
            start = time.perf_counter()
            predictor.forward(predictor.params, *batch).block_until_ready()
            if turn:  # the first turn compiles
                seconds[which].append(time.perf_counter() - start)
    return float(np.median(seconds[0]) / np.median(seconds[1]))
