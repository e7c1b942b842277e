"""What the heads of a model attend to in a text, computed by the model's own modules.

A weight says what a position takes of another one's value at that layer, no more: not what the output would be without
it (Jain and Wallace 2019, arXiv:1902.10186). `gradients` is about the output.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from lepton_jax import hub
from lepton_jax.attribution.texts import Table, encode, names
from lepton_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """What the tokens of a text take of each other.

    Attributes:
      tokens: T of them, as they stand in the text; special ones in brackets.
      weights: float32 [L, H, T, T]: in each layer and head, what a token (row) takes of each one (column). Rows sum
        to 1.
    """

    tokens: tuple[str, ...]
    weights: np.ndarray


def attention_maps(bundle: hub.Bundle, text: str) -> AttentionMaps:
    """Returns the attention weights of every layer and head for a text; of a long one, for what the model reads of it.

    Args:
      bundle: any model, whatever its head and the form of its weights.
      text: one text.

    Raises:
      UserError: the model has no tokenizer, or `text` is no string.
    """
    (row,), table = encode(bundle, [text], "attention_maps(bundle, text)")
    # "xla" multiplies the values by these very weights.
    config = dataclasses.replace(bundle.config, attention="xla", remat="none")
    weights = np.asarray(_weights(bundle.model.clone(config=config), bundle.params, table))
    T = len(row)
    assert bundle.tokenizer is not None
    return AttentionMaps(names(bundle.tokenizer, row, text), weights[:, 0, :, :T, :T])


@partial(jax.jit, static_argnums=0)
def _weights(model: Transformer, params: Any, table: Table) -> jax.Array:
    """Returns float32 [L, B, H, T, T]."""
    ids, mask, positions, types = table
    more: dict[str, Any] = {"positions": positions, "token_type_ids": types, "packed": False}
    _, seen = model.apply({"params": params}, ids, mask, **more, mutable=["attention"])
    (stacked,) = jax.tree.leaves(seen)  # of shared layers [groups, layers of a group, B, H, T, T]
    return stacked.reshape(model.config.num_layers, *stacked.shape[-4:])
