"""DeBERTa-v2 and -v3 (He et al. 2020, arXiv:2006.03654; 2021, arXiv:2111.09543)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
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

_NAMES = ("query_proj", "key_proj", "value_proj")


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a DeBERTa with a head."""
    layer = "deberta.encoder.layer.{layer}"
    table = [*embeddings("deberta.embeddings", model), *post_norm_block(layer, names=_NAMES)]
    if model.relative:
        table.append(Tensor("relative/table", "deberta.encoder.rel_embeddings.weight"))
        if model.relative_norm:
            table += norm("relative/norm", "deberta.encoder.LayerNorm")
        if not model.relative_shared:
            if "c2p" in model.relative:
                table += linear("layers/attention/relative_key", f"{layer}.attention.self.pos_key_proj")
            if "p2c" in model.relative:
                table += linear("layers/attention/relative_query", f"{layer}.attention.self.pos_query_proj")
    if head == "masked_lm":
        table += linear("head/transform/dense", "cls.predictions.transform.dense")
        table += norm("head/transform/norm", "cls.predictions.transform.LayerNorm")
        table += scores("cls.predictions.decoder", "cls.predictions.bias", model)
    if head == "classification":
        table += linear("pooler/dense", "pooler.dense")
    if head in ("classification", "token_classification"):
        table += linear("head/output", "classifier")
    return table


def _read_more(config: Mapping[str, Any]) -> dict[str, Any]:
    terms = config.get("pos_att_type") or ()
    terms = tuple(part.strip().lower() for part in terms.split("|")) if isinstance(terms, str) else tuple(terms)
    relative = config.get("relative_attention", False)
    if bool(terms) != bool(relative) or not set(terms) <= {"c2p", "p2c"}:
        raise UserError(f"relative_attention={relative} with pos_att_type={list(terms)}: not supported")
    if config.get("embedding_size", config.get("hidden_size", 1536)) != config.get("hidden_size", 1536):
        raise UserError(f"embedding_size={config['embedding_size']}: not supported, only hidden_size")
    if config.get("pooler_hidden_size", config.get("hidden_size")) != config.get("hidden_size"):
        raise UserError(f"pooler_hidden_size={config['pooler_hidden_size']}: not supported, only hidden_size")
    size = config.get("hidden_size", 1536) // config.get("num_attention_heads", 24)
    if config.get("attention_head_size", size) != size:
        raise UserError(f"attention_head_size={config['attention_head_size']}: not supported, only {size}")
    norms = str(config.get("norm_rel_ebd", "none")).lower().split("|")
    buckets, distance = config.get("position_buckets", -1), config.get("max_relative_positions", -1)
    distance = distance if distance > 0 else config.get("max_position_embeddings", 512)
    return {
        "relative": terms,
        "relative_span": buckets if buckets > 0 else distance,
        "relative_max_distance": distance if buckets > 0 else 0,
        "relative_shared": bool(config.get("share_att_key", False)),
        "relative_norm": "layer_norm" in (part.strip() for part in norms),
        "positions": "learned" if config.get("position_biased_input", True) else "none",
    }


def _write_more(model: ModelConfig) -> dict[str, Any]:
    return {
        "relative_attention": bool(model.relative),
        "pos_att_type": list(model.relative),
        "position_buckets": model.relative_span if model.relative_max_distance else -1,
        "max_relative_positions": model.relative_max_distance or model.relative_span,
        "share_att_key": model.relative_shared,
        "norm_rel_ebd": "layer_norm" if model.relative_norm else "none",
        "position_biased_input": model.positions == "learned",
    }


FAMILY = Family(
    model_type="deberta-v2",
    prefix="deberta",
    heads={
        "none": "DebertaV2Model",
        "masked_lm": "DebertaV2ForMaskedLM",
        "classification": "DebertaV2ForSequenceClassification",
        "token_classification": "DebertaV2ForTokenClassification",
    },
    fields=bert.FIELDS
    | {
        "vocab_size": ("vocab_size", 128_100),
        "hidden_size": ("hidden_size", 1536),
        "num_layers": ("num_hidden_layers", 24),
        "num_heads": ("num_attention_heads", 24),
        "intermediate_size": ("intermediate_size", 6144),
        "type_vocab_size": ("type_vocab_size", 0),
        "norm_epsilon": ("layer_norm_eps", 1e-7),
        "head_activation": ("hidden_act", "gelu"),
        "pooler_activation": ("pooler_hidden_act", "gelu"),
    },
    settings={"norm_position": "post", "pooling": "cls"},
    tensors=tensors,
    only={
        "conv_kernel_size": (0, None),  # a convolution after the first layer
        "legacy": (True,),
    },
    aliases={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers={"deberta.embeddings.position_ids": position_ids},
    read_more=_read_more,
    write_more=_write_more,
)
