"""RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lepton_jax.config import ModelConfig
from lepton_jax.hub.families import bert
from lepton_jax.hub.families.family import (
    Family,
    Tensor,
    embeddings,
    linear,
    norm,
    position_ids,
    post_norm_block,
    scores,
)
from lepton_jax.models.transformer import Head


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a RoBERTa with a head. A classifier's dense layer is what a pooler is elsewhere."""
    table = [*embeddings("roberta.embeddings", model), *post_norm_block("roberta.encoder.layer.{layer}")]
    if head == "pooler":
        table += linear("pooler/dense", "roberta.pooler.dense")
    if head == "masked_lm":
        table += linear("head/transform/dense", "lm_head.dense")
        table += norm("head/transform/norm", "lm_head.layer_norm")
        table += scores("lm_head.decoder", "lm_head.bias", model)
    if head == "classification":
        table += linear("pooler/dense", "classifier.dense") + linear("head/output", "classifier.out_proj")
    if head == "token_classification":
        table += linear("head/output", "classifier")
    return table


def _read_more(config: Mapping[str, Any]) -> dict[str, Any]:
    padding = config.get("pad_token_id", 1)
    return {"position_offset": (1 if padding is None else padding) + 1}


FAMILY = Family(
    model_type="roberta",
    prefix="roberta",
    heads={
        "none": "RobertaModel",
        "pooler": "RobertaModel",
        "masked_lm": "RobertaForMaskedLM",
        "classification": "RobertaForSequenceClassification",
        "token_classification": "RobertaForTokenClassification",
    },
    fields=bert.FIELDS | {"vocab_size": ("vocab_size", 50_265)},
    settings=bert.SETTINGS | {"head_activation": "gelu"},
    tensors=tensors,
    only=bert.ONLY,
    aliases={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    buffers={"roberta.embeddings.position_ids": position_ids},
    read_more=_read_more,
    write_more=lambda model: {"pad_token_id": model.position_offset - 1},
)

XLM_FAMILY = dataclasses.replace(
    FAMILY,
    model_type="xlm-roberta",
    heads={head: f"XLM{name}" for head, name in FAMILY.heads.items()},
    fields={**FAMILY.fields, "vocab_size": ("vocab_size", 30_522)},
)
