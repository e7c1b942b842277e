"""What a predictor runs: a pure function of parameters and a batch, made of a model here, or read from an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import lay_out
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.infer.signature import Signature

if TYPE_CHECKING:
    from lepton_jax.hub import Bundle
    from lepton_jax.models.transformer import Transformer

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS = ("float32", "bfloat16", "int8")
Pooling = Literal["mean", "cls", "last"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of int32 batches and what surrounds it.

    `forward(params, token_ids [N, T], attention_mask [N, T][, token_type_ids [N, T]][, places [N]])` returns
    (outputs, features). Outputs are float32: [N, C] of whole texts, [N, T, C] of tokens, [N, k, 2] of masks, the
    probabilities and ids of the k likeliest tokens at a place of each row. Features are float32 [N, D], a vector of
    each row by which texts can be told from others, see `profiles`.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    params: Any
    signature: Signature
    tokenizer: Tokenizer
    precision: Precision
    lengths: tuple[int, ...] = ()  # the only ones that it takes; (): any up to the model's
    portable: Callable[..., tuple[jax.Array, jax.Array]] | None = None  # `forward` for any platform; None: of an export


def of(
    bundle: Bundle,
    precision: Precision | None = None,
    task: str | None = None,
    pooling: Pooling = "mean",
    top: int = 5,
    attention: Literal["auto", "int8"] = "auto",
) -> Program:
    """Returns the program of a model.

    Args:
      bundle: the model.
      precision: see `load`.
      task: one of `signature.TASKS`; None: that of the model's head.
      pooling: of the task "embedding": the mean over a text's tokens, or its first or last one.
      top: of the task "masked_lm": how many tokens for each mask.
      attention: of int8, whether its products are int8, too; those of an export are not.

    Raises:
      UserError: no such precision, task or pooling; attention in int8 of a float model; or a model without tokenizer,
        whose head has not been trained, or whose int8 weights are asked for as float.
    """
    precision = precision or bundle.card.weights
    if attention == "int8" and precision != "int8":
        raise UserError(f"infer.attention='int8': is for an int8 model, not for {precision}")
    if bundle.tokenizer is None:
        raise UserError("the folder has no tokenizer, which texts need; put its files beside the weights")
    if pooling not in ("mean", "cls", "last"):
        raise UserError(f"pooling={pooling!r}: must be mean, cls or last")
    signature = Signature.of(bundle.card, task)
    if signature.task != "embedding" and "head" in bundle.initialised:
        raise UserError("the weights have no head, and a new one has learnt nothing; fine-tune it first")
    candidates = _candidates(bundle.tokenizer)
    if not 1 <= top <= candidates.sum():
        raise UserError(f"top={top}: must be from 1 to {candidates.sum()}, the tokens that may fill a mask")
    from lepton_jax.models.transformer import unstack

    dtype = "bfloat16" if precision == "bfloat16" else "float32"

    def forward(attention: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
        model = bundle.model.clone(config=dataclasses.replace(bundle.config, dtype=dtype, attention=attention))
        if signature.task == "embedding":
            return partial(_embed, model, pooling)
        if signature.task == "masked_lm":
            return partial(_fill, model, top, candidates)
        return partial(_classify, model)

    params = lay_out(unstack(convert(bundle, precision)))
    return Program(forward(attention), params, signature, bundle.tokenizer, precision, portable=forward("xla"))


def convert(bundle: Bundle, precision: Precision, known: Sequence[str] = PRECISIONS) -> Any:
    """Returns the parameters of a bundle in a precision.

    Raises:
      UserError: it is not one of the known ones, or int8 weights are asked for as float.
    """
    from lepton_jax.compress import quantize_int8

    if precision not in known:
        raise UserError(f"precision={precision!r}: must be {', '.join(known[:-1])} or {known[-1]}")
    if bundle.card.weights == "int8" and precision != "int8":
        raise UserError(f"the folder holds int8 weights, which load as int8, not as {precision}")
    if precision == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bundle.params)
    if precision == "int8" and bundle.card.weights != "int8":
        return jax.jit(quantize_int8, static_argnums=1)(bundle.params, bundle.card.keep_float)
    return bundle.params


def _apply(model: Transformer, params: Any, token_ids: jax.Array, mask: jax.Array, types: Any, **more: Any) -> Any:
    return model.apply({"params": params}, token_ids, mask, token_type_ids=types, packed=False, **more)


def _pooled(hidden: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    from lepton_jax.models.heads import pool

    return pool(hidden.astype(jnp.float32), mask, pooling)


def embedding(hidden_NxTxD: jax.Array, mask_NxT: jax.Array, pooling: Pooling) -> jax.Array:
    """Returns float32 [N, D]: a vector of length 1 for each row, its pooled hidden states."""
    pooled_NxD = _pooled(hidden_NxTxD, mask_NxT, pooling)
    return pooled_NxD / jnp.maximum(jnp.linalg.norm(pooled_NxD, axis=-1, keepdims=True), 1e-12)


def _classify(
    model: Transformer, params: Any, token_ids: jax.Array, mask: jax.Array, types: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    out = _apply(model, params, token_ids, mask, types)
    features = out["pooled"].astype(jnp.float32) if "pooled" in out else _pooled(out["hidden"], mask, "mean")
    return out["logits"].astype(jnp.float32), features


def _embed(
    model: Transformer,
    pooling: Pooling,
    params: Any,
    token_ids: jax.Array,
    mask: jax.Array,
    types: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    vectors = embedding(_apply(model, params, token_ids, mask, types)["hidden"], mask, pooling)
    return vectors, vectors


def _candidates(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bool [vocab_size]: the tokens that may fill a mask, which are no special ones."""
    special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    found = np.ones(tokenizer.vocab_size, bool)
    found[[number for number in special if number is not None]] = False
    return found


def _fill(
    model: Transformer,
    top: int,
    candidates: np.ndarray,
    params: Any,
    token_ids: jax.Array,
    mask: jax.Array,
    *more: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    *types, places_N = more
    out = _apply(model, params, token_ids, mask, types[0] if types else None, predict=places_N[:, None])
    logits_NxV = out["logits"][:, 0, : len(candidates)].astype(jnp.float32)  # rows that fill up the table are no tokens
    values, ids = jax.lax.top_k(jnp.where(candidates[None], jax.nn.softmax(logits_NxV), -1), top)
    # Ids are exact in float32: they are below 2^24.
    return jnp.stack([values, ids.astype(jnp.float32)], axis=-1), _pooled(out["hidden"], mask, "mean")
