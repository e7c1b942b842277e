"""BERT (Devlin et al. 2018, arXiv:1810.04805), also MiniLM, multilingual and Chinese checkpoints."""

from __future__ import annotations

from lepton_jax.config import ModelConfig
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

# The fields and settings that BERT, RoBERTa and ELECTRA share.
FIELDS = {
    "vocab_size": ("vocab_size", 30_522),
    "hidden_size": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "max_positions": ("max_position_embeddings", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "norm_epsilon": ("layer_norm_eps", 1e-12),
    "activation": ("hidden_act", "gelu"),
    "dropout": ("hidden_dropout_prob", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "tied_head": ("tie_word_embeddings", True),
}
SETTINGS = {"norm_position": "post", "positions": "learned", "pooling": "cls"}
ONLY = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
}


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a BERT with a head."""
    table = [*embeddings("bert.embeddings", model), *post_norm_block("bert.encoder.layer.{layer}")]
    if head in ("pooler", "classification"):
        table += linear("pooler/dense", "bert.pooler.dense")
    if head == "masked_lm":
        table += linear("head/transform/dense", "cls.predictions.transform.dense")
        table += norm("head/transform/norm", "cls.predictions.transform.LayerNorm")
        table += scores("cls.predictions.decoder", "cls.predictions.bias", model)
    if head in ("classification", "token_classification"):
        table += linear("head/output", "classifier")
    return table


FAMILY = Family(
    model_type="bert",
    prefix="bert",
    heads={
        "none": "BertModel",
        "pooler": "BertModel",
        "masked_lm": "BertForMaskedLM",
        "classification": "BertForSequenceClassification",
        "token_classification": "BertForTokenClassification",
    },
    fields=FIELDS | {"head_activation": ("hidden_act", "gelu")},
    settings=SETTINGS,
    tensors=tensors,
    only=ONLY,
    aliases={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers={"bert.embeddings.position_ids": position_ids},
)
