"""ModernBERT (Warner et al. 2024, arXiv:2412.13663)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
from lepton_jax.hub.families.family import Family, Tensor, fused, linear, norm
from lepton_jax.models.transformer import Head

_FULL, _LOCAL = "full_attention", "sliding_attention"


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a ModernBERT with a head. Its first layer has no norm before attention."""
    layer = "model.layers.{layer}"
    attention = [f"layers/attention/{name}" for name in ("query", "key", "value")]
    table = [
        Tensor("embeddings/token", "model.embeddings.tok_embeddings.weight"),
        *norm("embeddings/norm", "model.embeddings.norm", model.norm_bias),
        *norm("layers/attention_norm", f"{layer}.attn_norm", model.norm_bias, first=1),
        *fused(attention, f"{layer}.attn.Wqkv", model.bias),
        *linear("layers/attention/output", f"{layer}.attn.Wo", model.bias),
        *norm("layers/feed_forward_norm", f"{layer}.mlp_norm", model.norm_bias),
        *fused(["layers/feed_forward/gate", "layers/feed_forward/up"], f"{layer}.mlp.Wi", model.bias),
        *linear("layers/feed_forward/down", f"{layer}.mlp.Wo", model.bias),
        *norm("final_norm", "model.final_norm", model.norm_bias),
    ]
    if head == "masked_lm":
        table += linear("head/transform/dense", "head.dense", model.head_bias)
        table += norm("head/transform/norm", "head.norm", model.norm_bias)
        table += [Tensor("head/bias", "decoder.bias")] * model.output_bias
        if not model.tied_head:
            table.append(Tensor("head/kernel", "decoder.weight", transpose=True))
    if head in ("classification", "token_classification"):
        table += linear("pooler/dense", "head.dense", model.head_bias)
        table += norm("pooler/norm", "head.norm", model.norm_bias)
        table += linear("head/output", "classifier")
    return table


def _read_more(config: Mapping[str, Any]) -> dict[str, Any]:
    depth, bias = config.get("num_hidden_layers", 22), config.get("attention_bias", False)
    if config.get("mlp_bias", False) != bias:
        raise UserError(f"attention_bias={bias} with mlp_bias={not bias}: not supported, they must be equal")
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds:
        every = next((number for number in range(1, depth) if kinds[number] == _FULL), depth)
        if kinds != _layer_types(depth, every):
            raise UserError(f"layer_types={kinds}: not supported, only {_FULL} in every n-th layer from the first on")
    rotary = config.get("rope_parameters") or {}
    bases = {}
    for kind, old, default in ((_FULL, "global_rope_theta", 160_000.0), (_LOCAL, "local_rope_theta", 10_000.0)):
        settings = rotary.get(kind) or {}
        form = settings.get("rope_type", "default")
        if form != "default" or config.get("rope_scaling"):
            raise UserError(f"rope_type={form!r}: not supported, only 'default' without scaling")
        bases[kind] = float(settings.get("rope_theta", config.get(old) or default))
    return {
        "bias": bias,
        "global_every": every,
        "local_window": config.get("local_attention", 128) // 2,
        "rotary_base": bases[_FULL],
        "local_rotary_base": bases[_LOCAL],
    }


def _layer_types(depth: int, every: int) -> list[str]:
    return [_LOCAL if layer % every else _FULL for layer in range(depth)]


def _write_more(model: ModelConfig) -> dict[str, Any]:
    return {
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        "layer_types": _layer_types(model.num_layers, model.global_every),
        "local_attention": 2 * model.local_window,
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": model.rotary_base},
            _LOCAL: {"rope_type": "default", "rope_theta": model.local_rotary_base},
        },
    }


FAMILY = Family(
    model_type="modernbert",
    prefix="model",
    heads={
        "none": "ModernBertModel",
        "masked_lm": "ModernBertForMaskedLM",
        "classification": "ModernBertForSequenceClassification",
        "token_classification": "ModernBertForTokenClassification",
    },
    fields={
        "vocab_size": ("vocab_size", 50_368),
        "hidden_size": ("hidden_size", 768),
        "num_layers": ("num_hidden_layers", 22),
        "num_heads": ("num_attention_heads", 12),
        "intermediate_size": ("intermediate_size", 1152),
        "max_positions": ("max_position_embeddings", 8192),
        "norm_epsilon": ("norm_eps", 1e-5),
        "norm_bias": ("norm_bias", False),
        "activation": ("hidden_activation", "gelu"),
        "head_activation": ("classifier_activation", "gelu"),
        "pooler_activation": ("classifier_activation", "gelu"),
        "head_bias": ("classifier_bias", False),
        "pooling": ("classifier_pooling", "cls"),
        "dropout": ("mlp_dropout", 0.0),
        "initializer_range": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", True),
        "output_bias": ("decoder_bias", True),
    },
    settings={
        "norm_position": "pre",
        "first_norm": False,
        "positions": "rotary",
        "gated": True,
        "pooler": "transform",
    },
    by_head={"classification": {"output_bias": True}, "token_classification": {"output_bias": True}},
    tensors=tensors,
    aliases={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    read_more=_read_more,
    write_more=_write_more,
)
