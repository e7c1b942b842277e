"""Mask filling: the tokens that a masked language model would put in place of each "[MASK]" of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.infer.readings import Prediction

MARK = "[MASK]"  # in texts, whatever the tokenizer calls its own token
MOST = 64  # masks of a text that are filled


class Masked(NamedTuple):
    """Texts as rows of a model, one for each mask, which stand together."""

    ids: list[np.ndarray]  # int32 [n] each
    places: list[int]  # where in its row each mask is
    spans: list[list[tuple[int, int]]]  # of each text: where its masks are, text[start:end] is the mark


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Masked:
    """Returns texts as rows of at most `max_length` tokens; of a longer text each mask has the part around it.

    Spaces before a mask are left out, as tokens begin with theirs.

    Raises:
      UserError: the tokenizer has no token for masks.
    """
    if tokenizer.mask_id is None:
        raise UserError("the tokenizer has no token for masks, which a model that fills them needs")
    mask = np.array([tokenizer.mask_id], np.int32)
    special = tokenizer.with_specials(mask)
    before, room = int(np.argmax(special == tokenizer.mask_id)), max_length - len(special) + 1
    spans = [[match.span() for match in re.finditer(re.escape(MARK), text)] for text in texts]
    parts = [text.split(MARK) for text in texts]
    pieces = iter(tokenizer.encode([
        part.rstrip() if number < len(own) - 1 else part for own in parts for number, part in enumerate(own)
    ]))  # fmt: skip
    found = Masked([], [], [own[:MOST] for own in spans])
    for own in parts:
        tokens = [array for _ in own for array in (next(pieces), mask)][:-1]
        content, ends = np.concatenate(tokens), np.cumsum([len(array) for array in tokens])
        for place in ends[: 2 * MOST : 2][: len(own) - 1].tolist():  # where the part before each mask ends
            start = max(0, min(place - room // 2, len(content) - room))
            found.ids.append(tokenizer.with_specials(content[start : start + room]))
            found.places.append(before + place - start)
    return found


def read(tokenizer: Tokenizer, masked: Masked, outputs: Sequence[np.ndarray]) -> list[Prediction]:
    """Returns a prediction a text.

    Args:
      tokenizer: of the rows.
      masked: the texts.
      outputs: of each row float32 [k, 2], the k likeliest tokens: probability, and id.
    """
    rows = iter(outputs)

    def fill(span: tuple[int, int]) -> dict[str, object]:
        tokens = [{"token": tokenizer.decode([int(number)]), "score": float(score)} for score, number in next(rows)]
        return {"start": span[0], "end": span[1], "tokens": tokens}

    return [{"masks": [fill(span) for span in own]} for own in masked.spans]
