"""A bundle as an ONNX file, with what a reader of its outputs needs beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from lepton_jax import __version__, hub, workdir
from lepton_jax.core.errors import UserError
from lepton_jax.disk import writing
from lepton_jax.infer.programs import convert, embedding
from lepton_jax.models.transformer import unstack

_LIMIT = 2**31 - 2**20  # bytes of one protocol buffer, less some for all but the parameters


def export(bundle: hub.Bundle, path: str | Path, precision: Literal["float32", "int8"] = "float32") -> None:
    """Writes a model as an ONNX file, and its tokenizer as the folder `PATH.tokenizer` beside it.

    Inputs are `token_ids`, `attention_mask` (1 at tokens, 0 at padding on the right) and, if the model has token types,
    `token_type_ids`: int64, as tokenizers give them to ONNX Runtime, [batch, length], any batch and length. Outputs are
    those of `outputs`. The file's metadata say `labels` (JSON), `task`, `head`, `precision`, `max_length`, `version`.

    Args:
      bundle: a model with float weights, or with int8 ones, which stay as they are calibrated.
      path: of the file, which is replaced if it is there; it appears complete or not at all.
      precision: of weights. int8: kernels and embedding tables are int8, and inputs of linear layers are rounded as
        `core.weights.Int8` does, so that each product is a MatMulInteger. On x86 processors without VNNI, as before
        2019, ONNX Runtime computes these exactly only with its session option "session.x64quantprecision" set to "1".

    Raises:
      UserError: no such precision, int8 weights asked for as float, the library `onnx` is missing, ONNX or one file
        cannot express the model, or the disk refuses.
    """
    card = bundle.card
    params = convert(bundle, precision, ("float32", "int8"))
    inputs = ["token_ids", "attention_mask", *(["token_type_ids"] if card.model.type_vocab_size > 1 else [])]
    metadata = {
        "labels": json.dumps(card.labels, ensure_ascii=False),
        "task": card.task.name,
        "head": card.head,
        "precision": precision,
        "max_length": str(card.max_length),
        "version": __version__,
    }
    write(path, partial(outputs, bundle), unstack(params), inputs, metadata)
    if bundle.tokenizer is not None:
        folder = Path(f"{path}.tokenizer").expanduser()
        with writing(folder):
            folder.mkdir(exist_ok=True)
            bundle.tokenizer.save(folder)


def outputs(
    bundle: hub.Bundle,
    params: Any,
    token_ids: jax.Array,
    attention_mask: jax.Array,
    token_type_ids: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns name -> what a model gives for int32 [B, T] tokens, float32.

    With a head that scores, `logits`, after the scale and offset of the card, so that their softmax (or sigmoid, or for
    a regressor they themselves) are the scores of a predictor. Else `hidden` [B, T, D], `embedding` [B, D], a
    predictor's, and where the model has a pooler `pooled` [B, D].
    """
    card = bundle.card
    # What other devices compute attention by has no form in ONNX.
    model = bundle.model.clone(config=dataclasses.replace(card.model, dtype="float32", attention="xla"))
    out: Any = model.apply({"params": params}, token_ids, attention_mask, token_type_ids=token_type_ids, packed=False)
    if "logits" in out:
        logits = out["logits"]
        return {"logits": logits if (card.scale, card.offset) == (1, 0) else logits * card.scale + card.offset}
    pooled = {"pooled": out["pooled"]} if "pooled" in out else {}
    return {"hidden": out["hidden"], "embedding": embedding(out["hidden"], attention_mask, "mean")} | pooled


def write(
    path: str | Path,
    function: Callable[..., Mapping[str, jax.Array]],
    params: Any,
    inputs: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Writes a function of parameters and int32 [batch, length] inputs as an ONNX file; see `trace.trace`.

    Raises:
      UserError: the library `onnx` is missing, ONNX or one file cannot express the function, or the disk refuses.
    """
    try:
        import onnx

        from lepton_jax.infer.onnx.trace import trace
    except ImportError as error:
        raise UserError(f"{path}: an ONNX file needs a library; pip install 'lepton_jax[onnx]' ({error})") from None
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > _LIMIT:
        raise UserError(f"{path}: the model has {size / 2**30:.1f} GiB of weights, an ONNX file holds less than 2")
    model = trace(function, params, inputs, metadata)
    onnx.checker.check_model(model, full_check=True)
    workdir.replace_file(Path(path).expanduser(), model.SerializeToString())
