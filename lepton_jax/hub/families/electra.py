"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): the generator is a masked language model, the discriminator tells
replaced tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jax.config import ModelConfig
from lepton_jax.hub.families import bert
from lepton_jax.hub.families.family import Family, Tensor, embeddings, linear, norm, position_ids, post_norm_block
from lepton_jax.models.transformer import Head


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of an ELECTRA with a head."""
    table = [*embeddings("electra.embeddings", model), *post_norm_block("electra.encoder.layer.{layer}")]
    if model.embedding_size:
        table += linear("embeddings/project", "electra.embeddings_project")
    if head == "masked_lm":
        table += linear("head/transform/dense", "generator_predictions.dense")
        table += norm("head/transform/norm", "generator_predictions.LayerNorm")
        table.append(Tensor("head/bias", "generator_lm_head.bias"))
        if not model.tied_head:
            table.append(Tensor("head/kernel", "generator_lm_head.weight", transpose=True))
    if head == "replaced_token":
        table += linear("head/transform/dense", "discriminator_predictions.dense")
        table += linear("head/output", "discriminator_predictions.dense_prediction")
    if head == "classification":
        table += linear("pooler/dense", "classifier.dense") + linear("head/output", "classifier.out_proj")
    if head == "token_classification":
        table += linear("head/output", "classifier")
    return table


def _read_more(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get("embedding_size", 128)
    return {"embedding_size": 0 if size == config.get("hidden_size", 256) else size}


FAMILY = Family(
    model_type="electra",
    prefix="electra",
    heads={
        "none": "ElectraModel",
        "masked_lm": "ElectraForMaskedLM",
        "replaced_token": "ElectraForPreTraining",
        "classification": "ElectraForSequenceClassification",
        "token_classification": "ElectraForTokenClassification",
    },
    fields=bert.FIELDS
    | {
        "hidden_size": ("hidden_size", 256),
        "num_heads": ("num_attention_heads", 4),
        "intermediate_size": ("intermediate_size", 1024),
    },
    settings=bert.SETTINGS | {"head_activation": "gelu", "pooler_activation": "gelu"},
    tensors=tensors,
    only=bert.ONLY,
    aliases={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    buffers={"electra.embeddings.position_ids": position_ids},
    read_more=_read_more,
    write_more=lambda model: {"embedding_size": model.embedding_size or model.hidden_size},
)
