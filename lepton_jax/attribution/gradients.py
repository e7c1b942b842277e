"""What each word adds to an output of a model, by integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365).

The path is straight, from the token embeddings of a baseline that says nothing to those of the text (equation 1):

    score_t = sum over e of (x_te - b_te) * integral over a from 0 to 1 of df(b + a (x - b)) / dx_te

so that all scores add up to f(x) - f(b), which is completeness (proposition 1). The integral is taken by Gauss-Legendre
quadrature; what is missing to completeness is its error. Modules take whatever the parameter tree holds, so the model
is applied as it is to a tree whose embedding table has one row a position: the vectors between b and x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import hub
from lepton_jax.attribution import targets
from lepton_jax.attribution.drawing import as_html
from lepton_jax.attribution.texts import Table, encode, names
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import take
from lepton_jax.data.spans import Word, words_of
from lepton_jax.data.tokenizers.protocol import Encoded
from lepton_jax.models.transformer import Transformer

Baseline = Literal["mask", "pad", "zero"]
_ZERO = -1  # in a table of baseline ids: a vector of zeros


class Scored(NamedTuple):
    start: int  # text[start:end] is the word
    end: int
    score: float


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What the words of a text add to an output. In a notebook it shows itself as the text, with its words marked.

    Attributes:
      text: the text.
      target: what is explained: a label, "number", or spans.
      tokens: as they stand in the text.
      token_scores: float64 [T], in units of the output; special tokens are the same in the baseline, and have 0.
      words: those that the model reads, each with the sum of its tokens' scores. A part of the text in which no word
        lies has none.
      value: f(x): the output for the text, a logit as calibrated, or the number.
      base: f(b): the output for the baseline.
    """

    text: str
    target: str
    tokens: tuple[str, ...]
    token_scores: np.ndarray
    words: tuple[Scored, ...]
    value: float
    base: float

    @property
    def error(self) -> float:
        """Returns how far the scores are from completeness, `|sum of the scores - (value - base)|`.

        With the default steps it is below a hundredth of the difference for all but a few texts; where it is not small
        beside `value - base`, more steps make it so.
        """
        return abs(float(self.token_scores.sum()) - (self.value - self.base))

    def _repr_html_(self) -> str:
        caption = f"{self.target}: {self.value:.2f}, baseline {self.base:.2f}, error {self.error:.1g}"
        return as_html(self.text, self.words, caption)


def integrated_gradients(
    bundle: hub.Bundle,
    texts: Sequence[str],
    target: str | Sequence[Any] | None = None,
    baseline: Baseline = "mask",
    steps: int = 32,
    batch_size: int = 8,
) -> list[Attribution]:
    """Returns what each word of each text adds to an output of a model with float weights.

    All texts are padded to one length, so that one program is compiled, for batches of `batch_size` rows. Of a text
    that is longer than the model reads, only the beginning has scores.

    Args:
      bundle: a model with the head "classification" (of classes, sets or numbers) or "token_classification".
      texts: single texts.
      target: a label, or one for each text; of a token classifier a span `{"start", "end", "label"}` for each text.
        None: what the model itself predicts, see `targets`.
      baseline: what the tokens of the text are replaced by, special ones not: "mask" and "pad" are the model's tokens
        of that kind, "zero" is a vector of zeros. Scores depend on it: they say what the text adds to this.
      steps: points of the path at which the gradient is taken.
      batch_size: rows that are computed at once.

    Raises:
      UserError: int8 weights, which have no gradient; another head, or one that has not been trained; a tokenizer
        without mask token; zeros for a model that adds nothing to them before its first norm, at which its output
        jumps; see also `texts.encode` and `targets`.
    """
    _check(bundle, baseline, steps, batch_size)
    rows, table = encode(bundle, texts, "integrated_gradients(bundle, texts)")
    words = [words_of(row, text) for row, text in zip(rows, texts, strict=True)]
    config = dataclasses.replace(bundle.config, dtype="float32", attention="xla", remat="none")
    model = bundle.model.clone(config=config)
    size = min(batch_size, len(rows))
    outputs = np.concatenate([np.asarray(_outputs(model, bundle.params, part)) for part in _batches(table, size)])
    if bundle.card.head == "classification":
        select, found = targets.of_texts(bundle.card, target, outputs[: len(rows)])
    else:
        select, found = targets.of_words(bundle.card, target, outputs[: len(rows)], words)
    empty = _baseline(bundle, rows, table, baseline)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    rule = ((nodes + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)
    parts = [
        jax.tree.map(np.asarray, _integrate(model, bundle.params, *part, rule))
        for part in zip(_batches(table, size), _batches(empty, size), _batches(select, size), strict=True)
    ]
    scores, values, bases = (np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True))
    scale, offset, made = bundle.card.scale, bundle.card.offset, []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        own = scores[number, : len(row)] * scale
        value, base = (float(each[number] * scale + offset) for each in (values, bases))
        assert bundle.tokenizer is not None
        tokens = names(bundle.tokenizer, row, text)
        scored = _by_word(row, text, words[number], own)
        made.append(Attribution(text, found[number], tokens, own, scored, value, base))
    return made


def _check(bundle: hub.Bundle, baseline: str, steps: int, batch_size: int) -> None:
    where = "integrated_gradients(bundle, texts)"
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(bundle.params)):
        raise UserError(f"{where}: int8 weights round what they multiply, so that there is no gradient; load the model "
                        f"in float32, such as hub.load(WORKDIR) in place of WORKDIR/int8")  # fmt: skip
    if bundle.card.head not in ("classification", "token_classification"):
        raise UserError(
            f"{where}: the model has the head {bundle.card.head!r} and predicts no labels; fine-tune it first"
        )
    if "head" in bundle.initialised:
        raise UserError(f"{where}: the model's head is a new one and has learnt nothing; fine-tune it first")
    if baseline not in ("mask", "pad", "zero"):
        raise UserError(f"baseline={baseline!r}: must be mask, pad or zero")
    if baseline == "mask" and bundle.tokenizer is not None and bundle.tokenizer.mask_id is None:
        raise UserError("baseline='mask': the tokenizer has no mask token; take 'pad' or 'zero'")
    model = bundle.config
    if baseline == "zero" and model.positions != "learned" and not model.type_vocab_size:
        raise UserError(f"baseline='zero': with model.positions={model.positions!r} nothing is left of a vector of "
                        f"zeros, and a norm divides by its size; take 'mask' or 'pad'")  # fmt: skip
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")


def _baseline(bundle: hub.Bundle, rows: Sequence[Encoded], table: Table, kind: str) -> np.ndarray:
    """Returns the ids of the baseline, int32 [N, T]: special tokens and padding are those of the text."""
    tokenizer: Any = bundle.tokenizer
    filler = {"mask": tokenizer.mask_id, "pad": tokenizer.pad_id, "zero": _ZERO}[kind]
    ids = table.token_ids.copy()
    for own, row in zip(ids, rows, strict=True):
        own[: len(row)][row.sequence >= 0] = filler
    return ids


def _batches(tree: Any, size: int) -> list[Any]:
    """Returns arrays [N, ...] as parts of `size` rows; the last one is filled up with its last row."""
    count = len(jax.tree.leaves(tree)[0])
    numbers = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    return [jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], tree) for chosen in numbers]


def _apply(model: Transformer, params: Any, token_ids: Any, table: Table) -> jax.Array:
    more: dict[str, Any] = {"positions": table.positions, "token_type_ids": table.token_type_ids, "packed": False}
    out: Any = model.apply({"params": params}, token_ids, table.attention_mask, **more)
    return out["logits"].astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _outputs(model: Transformer, params: Any, table: Table) -> jax.Array:
    return _apply(model, params, table.token_ids, table)


@partial(jax.jit, static_argnums=0)
def _integrate(
    model: Transformer,
    params: Any,
    table: Any,
    baseline_BxT: jax.Array,
    select: jax.Array,
    rule: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (scores [B, T], f(x) [B], f(b) [B]).

    Args:
      model, params, table: what is explained.
      baseline_BxT: ids of the baseline.
      select: [B, ...] as the outputs: f is the sum of their product.
      rule: points of the path from 0 to 1, and their weights, [steps] each.
    """
    embeddings, (B, T) = params["embeddings"], baseline_BxT.shape
    end_BxTxE = take(embeddings["token"], table.token_ids)
    start_BxTxE = jnp.where(
        baseline_BxT[:, :, None] == _ZERO, 0, take(embeddings["token"], jnp.maximum(baseline_BxT, 0))
    )
    places_BxT = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)

    def f(vectors_BxTxE: jax.Array) -> jax.Array:
        own = params | {"embeddings": embeddings | {"token": vectors_BxTxE.reshape(B * T, -1)}}
        return jnp.sum(_apply(model, own, places_BxT, table) * select, axis=tuple(range(1, select.ndim)))

    def add(total_BxTxE: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        share, weight = point
        between_BxTxE = start_BxTxE + share * (end_BxTxE - start_BxTxE)
        return total_BxTxE + weight * jax.grad(lambda x: f(x).sum())(between_BxTxE), None  # no row sees another one

    mean_BxTxE, _ = jax.lax.scan(add, jnp.zeros_like(end_BxTxE), rule)
    return jnp.sum(mean_BxTxE * (end_BxTxE - start_BxTxE), axis=-1), f(end_BxTxE), f(start_BxTxE)


def _by_word(row: Encoded, text: str, words: Sequence[Word], scores: np.ndarray) -> tuple[Scored, ...]:
    """Returns words with the sum of their tokens' scores; a token that is space counts for the word after it."""
    totals, firsts = np.zeros(len(words)), [word.first for word in words]
    for token in np.flatnonzero(row.sequence >= 0).tolist() if words else ():
        start, end = row.offsets[token].tolist()
        place = int(np.searchsorted(firsts, token, side="right")) - 1
        totals[min(max(place + text[start:end].isspace(), 0), len(words) - 1)] += scores[token]
    return tuple(Scored(word.start, word.end, float(total)) for word, total in zip(words, totals, strict=True))
