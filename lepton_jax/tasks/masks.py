"""Which positions of a row a masked language model predicts: single tokens, whole words, or spans.

All are drawn on the device with shapes that do not depend on what is drawn: a row has a budget of positions, of which
those that are not used weigh nothing. A unit (a word, a span) is masked whole or not at all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

# How often the room that is left is filled with units that still fit; after the third time it is seldom a token.
_ROUNDS = 3


def choose(
    key: Key[Array, ""],
    ordinary: Bool[Array, "rows length"],
    starts: Bool[Array, "rows length"] | None,
    rate: float,
    budget: int,
) -> tuple[Int[Array, "rows budget"], Float[Array, "rows budget"]]:
    """Draws positions, uniformly over the units of each row.

    A row of c ordinary tokens wants w = round(rate * c) positions, at least one where c > 0, at most the budget. Single
    tokens give w exactly. Units are taken in random order as long as they fit into w; those that do not are left out,
    but where all are longer than w, w is the length of the shortest of them, if that is within the budget.

    Args:
      key: of the draw.
      ordinary: which tokens may be predicted.
      starts: where units begin, see `units`; None: each token is one.
      rate: share of the ordinary tokens to predict.
      budget: positions that a row has room for; static.

    Returns:
      (positions, each at most once in a row, weight 1 or 0 of each).
    """
    count = jnp.sum(ordinary, axis=1)
    wanted = jnp.clip(jnp.round(rate * count).astype(jnp.int32), jnp.minimum(count, 1), budget)
    # The largest of random scores are a uniform choice without replacement; other positions come last.
    scores = jnp.where(ordinary, jax.random.uniform(key, ordinary.shape), -1.0)
    if starts is not None:
        chosen = whole(scores, starts, wanted, budget)
        scores, wanted = jnp.where(chosen, scores, -1.0), jnp.sum(chosen, axis=1)
    positions = lax.top_k(scores, budget)[1]
    return positions, (jnp.arange(budget)[None, :] < wanted[:, None]).astype(jnp.float32)


def units(
    begins: Bool[Array, "rows length"], ordinary: Bool[Array, "rows length"], segments: Int[Array, "rows length"]
) -> Bool[Array, "rows length"]:
    """Returns where units begin: where `begins` says so, and wherever one cannot go on from the position before.

    That is after a token that is not ordinary, and at the first token of a document, whose `segments` are its own.
    """
    goes_on = ordinary[:, :-1] & (segments[:, :-1] == segments[:, 1:])
    return ordinary & (begins | jnp.pad(~goes_on, ((0, 0), (1, 0)), constant_values=True))


def spans(key: Key[Array, ""], shape: tuple[int, int], mean: float) -> Bool[Array, "rows length"]:
    """Returns where random spans begin. Their lengths are geometric with a mean, so every token may begin one.

    SpanBERT (Joshi et al. 2019, arXiv:1907.10529, section 3.1) draws spans of such lengths and their places; here a row
    is cut into spans, of which `choose` takes some, so that none overlaps another and the budget holds.
    """
    return jax.random.bernoulli(key, 1.0 / mean, shape)


def whole(
    scores: Float[Array, "rows length"],
    starts: Bool[Array, "rows length"],
    wanted: Int[Array, "rows"],
    budget: int,
) -> Bool[Array, "rows length"]:
    """Returns the positions of the units that are chosen, see `choose`; those without a unit have a score below 0."""
    rows, length = scores.shape
    unit = jnp.cumsum(starts, axis=1) - 1  # number of the unit that a position belongs to, if it is in one
    inside = scores >= 0
    unit = jnp.where(inside, unit, length)
    row = jnp.arange(rows)[:, None]
    size = jnp.zeros((rows, length + 1), jnp.int32).at[row, unit].add(1)[:, :length]
    shortest = jnp.min(jnp.where(size > 0, size, length + 1), axis=1)
    limit = jnp.minimum(jnp.maximum(wanted, shortest), budget)

    # A unit's score is that of its first position.
    first = jnp.full((rows, length), -1.0).at[row, jnp.where(starts, unit, length)].set(scores, mode="drop")
    order = jnp.argsort(-first, axis=1)
    size = jnp.take_along_axis(size, order, axis=1)
    taken = jnp.zeros((rows, length), bool)
    for _ in range(_ROUNDS):
        room = (limit - jnp.sum(size * taken, axis=1))[:, None]
        fits = ~taken & (size > 0) & (size <= room)
        taken |= fits & (jnp.cumsum(size * fits, axis=1) <= room)
    taken = jnp.zeros((rows, length), bool).at[row, order].set(taken)
    return inside & jnp.take_along_axis(taken, jnp.minimum(unit, length - 1), axis=1)
