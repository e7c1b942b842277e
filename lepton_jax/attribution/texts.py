"""Texts as one padded table, and their tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax import hub
from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.data.tokenizers.protocol import Encoded
from lepton_jax.models.embeddings import default_positions

_LENGTHS = 16  # tokens of a row are a multiple of this, so that texts of about one length share a compiled program


class Table(NamedTuple):
    """What a model is applied to: int32 [B, T] each."""

    token_ids: np.ndarray
    attention_mask: np.ndarray
    positions: np.ndarray
    token_type_ids: np.ndarray | None  # None: the model has none


def encode(bundle: hub.Bundle, texts: Sequence[str], where: str) -> tuple[list[Encoded], Table]:
    """Returns the tokens of texts, at most as many as the model reads, and the table of them, padded to one length.

    Args:
      bundle: the model.
      texts: one or more.
      where: the function that was called, for messages.

    Raises:
      UserError: a model without tokenizer, no text, or something that is no text.
    """
    if bundle.tokenizer is None:
        raise UserError(f"{where}: the model has no tokenizer, which texts need; put its files beside the weights")
    if isinstance(texts, (str, bytes)) or not len(texts):
        raise UserError(f"{where}: texts must be a sequence of at least one string")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{where}: element {number} of the texts is {type(text).__name__}, not a string")
    rows = bundle.tokenizer.rows(texts, max_length=bundle.card.max_length)
    length = min(-(-max(map(len, rows)) // _LENGTHS) * _LENGTHS, bundle.card.max_length)
    ids = np.full((len(rows), length), bundle.tokenizer.pad_id, np.int32)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row.ids, 1
    types = np.zeros_like(ids) if bundle.config.type_vocab_size else None
    positions = default_positions(jnp.asarray(ids), bundle.config.position_offset)
    return rows, Table(ids, mask, np.asarray(positions), types)


def names(tokenizer: Tokenizer, row: Encoded, text: str) -> tuple[str, ...]:
    """Returns each token as it stands in the text; special ones in brackets."""
    special = {tokenizer.cls_id: "[CLS]", tokenizer.sep_id: "[SEP]"}
    return tuple(
        special.get(int(token), "[special]") if part < 0 else text[start:end].strip() or tokenizer.decode([token])
        for token, (start, end), part in zip(row.ids, row.offsets.tolist(), row.sequence, strict=True)
    )
