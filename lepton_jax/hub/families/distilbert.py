"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108)."""

from __future__ import annotations

from lepton_jax.config import ModelConfig
from lepton_jax.hub.families.family import Family, Tensor, embeddings, linear, norm, position_ids
from lepton_jax.models.transformer import Head


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a DistilBERT with a head."""
    layer = "distilbert.transformer.layer.{layer}"
    table = [
        *embeddings("distilbert.embeddings", model),
        *linear("layers/attention/query", f"{layer}.attention.q_lin"),
        *linear("layers/attention/key", f"{layer}.attention.k_lin"),
        *linear("layers/attention/value", f"{layer}.attention.v_lin"),
        *linear("layers/attention/output", f"{layer}.attention.out_lin"),
        *norm("layers/attention_norm", f"{layer}.sa_layer_norm"),
        *linear("layers/feed_forward/up", f"{layer}.ffn.lin1"),
        *linear("layers/feed_forward/down", f"{layer}.ffn.lin2"),
        *norm("layers/feed_forward_norm", f"{layer}.output_layer_norm"),
    ]
    if head == "masked_lm":
        table += linear("head/transform/dense", "vocab_transform") + norm("head/transform/norm", "vocab_layer_norm")
        table.append(Tensor("head/bias", "vocab_projector.bias"))
        if not model.tied_head:
            table.append(Tensor("head/kernel", "vocab_projector.weight", transpose=True))
    if head == "classification":
        table += linear("pooler/dense", "pre_classifier")
    if head in ("classification", "token_classification"):
        table += linear("head/output", "classifier")
    return table


FAMILY = Family(
    model_type="distilbert",
    prefix="distilbert",
    heads={
        "none": "DistilBertModel",
        "masked_lm": "DistilBertForMaskedLM",
        "classification": "DistilBertForSequenceClassification",
        "token_classification": "DistilBertForTokenClassification",
    },
    fields={
        "vocab_size": ("vocab_size", 30_522),
        "hidden_size": ("dim", 768),
        "num_layers": ("n_layers", 6),
        "num_heads": ("n_heads", 12),
        "intermediate_size": ("hidden_dim", 3072),
        "max_positions": ("max_position_embeddings", 512),
        "activation": ("activation", "gelu"),
        "head_activation": ("activation", "gelu"),
        "dropout": ("dropout", 0.1),
        "initializer_range": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", True),
    },
    settings={
        "norm_position": "post",
        "norm_epsilon": 1e-12,
        "positions": "learned",
        "pooling": "cls",
        "pooler_activation": "relu",
    },
    tensors=tensors,
    only={"pruned_heads": ({}, None)},
    aliases={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    buffers={"distilbert.embeddings.position_ids": position_ids},
)
