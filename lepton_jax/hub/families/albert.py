"""ALBERT (Lan et al. 2019, arXiv:1909.11942): layers share parameters, the embeddings are factorised."""

from __future__ import annotations

from lepton_jax.config import ModelConfig
from lepton_jax.hub.families import bert
from lepton_jax.hub.families.family import Family, Tensor, embeddings, linear, norm, position_ids, scores
from lepton_jax.models.transformer import Head


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of an ALBERT with a head; "{layer}" is the number of a group."""
    layer = "albert.encoder.albert_layer_groups.{layer}.albert_layers.0"
    table = [
        *embeddings("albert.embeddings", model),
        *linear("embeddings/project", "albert.encoder.embedding_hidden_mapping_in"),
        *linear("layers/shared/attention/query", f"{layer}.attention.query"),
        *linear("layers/shared/attention/key", f"{layer}.attention.key"),
        *linear("layers/shared/attention/value", f"{layer}.attention.value"),
        *linear("layers/shared/attention/output", f"{layer}.attention.dense"),
        *norm("layers/shared/attention_norm", f"{layer}.attention.LayerNorm"),
        *linear("layers/shared/feed_forward/up", f"{layer}.ffn"),
        *linear("layers/shared/feed_forward/down", f"{layer}.ffn_output"),
        *norm("layers/shared/feed_forward_norm", f"{layer}.full_layer_layer_norm"),
    ]
    if head in ("pooler", "classification"):
        table += linear("pooler/dense", "albert.pooler")
    if head == "masked_lm":
        table += linear("head/transform/dense", "predictions.dense")
        table += norm("head/transform/norm", "predictions.LayerNorm")
        table += scores("predictions.decoder", "predictions.bias", model)
    if head in ("classification", "token_classification"):
        table += linear("head/output", "classifier")
    return table


FAMILY = Family(
    model_type="albert",
    prefix="albert",
    heads={
        "none": "AlbertModel",
        "pooler": "AlbertModel",
        "masked_lm": "AlbertForMaskedLM",
        "classification": "AlbertForSequenceClassification",
        "token_classification": "AlbertForTokenClassification",
    },
    fields=bert.FIELDS
    | {
        "vocab_size": ("vocab_size", 30_000),
        "embedding_size": ("embedding_size", 128),
        "hidden_size": ("hidden_size", 4096),
        "num_layer_groups": ("num_hidden_groups", 1),
        "num_heads": ("num_attention_heads", 64),
        "intermediate_size": ("intermediate_size", 16_384),
        "activation": ("hidden_act", "gelu_new"),
        "head_activation": ("hidden_act", "gelu_new"),
        "dropout": ("hidden_dropout_prob", 0.0),
    },
    settings=bert.SETTINGS,
    tensors=tensors,
    only=bert.ONLY | {"inner_group_num": (1,)},
    aliases={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    buffers={"albert.embeddings.position_ids": position_ids},
)
