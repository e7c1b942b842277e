"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jax.config import ModelConfig
from lepton_jax.hub.families.family import Family, Tensor, fused, linear, norm
from lepton_jax.models.transformer import Head


def tensors(model: ModelConfig, head: Head) -> list[Tensor]:
    """Returns the table of a GPT-2 with a head. Its own linear layers are [in, out], as ours."""
    layer = "transformer.h.{layer}"
    attention = [f"layers/attention/{name}" for name in ("query", "key", "value")]
    table = [
        Tensor("embeddings/token", "transformer.wte.weight"),
        Tensor("embeddings/position", "transformer.wpe.weight"),
        *norm("layers/attention_norm", f"{layer}.ln_1"),
        *fused(attention, f"{layer}.attn.c_attn", transpose=False),
        *fused(["layers/attention/output"], f"{layer}.attn.c_proj", transpose=False),
        *norm("layers/feed_forward_norm", f"{layer}.ln_2"),
        *fused(["layers/feed_forward/up"], f"{layer}.mlp.c_fc", transpose=False),
        *fused(["layers/feed_forward/down"], f"{layer}.mlp.c_proj", transpose=False),
        *norm("final_norm", "transformer.ln_f"),
    ]
    if head == "causal_lm" and not model.tied_head:
        table.append(Tensor("head/kernel", "lm_head.weight", transpose=True))
    if head == "classification":
        table += linear("head/output", "score", bias=False)
    if head == "token_classification":
        table += linear("head/output", "classifier")
    return table


def _read_more(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"intermediate_size": config.get("n_inner") or 4 * config.get("n_embd", 768)}


FAMILY = Family(
    model_type="gpt2",
    prefix="transformer",
    heads={
        "none": "GPT2Model",
        "causal_lm": "GPT2LMHeadModel",
        "classification": "GPT2ForSequenceClassification",
        "token_classification": "GPT2ForTokenClassification",
    },
    fields={
        "vocab_size": ("vocab_size", 50_257),
        "hidden_size": ("n_embd", 768),
        "num_layers": ("n_layer", 12),
        "num_heads": ("n_head", 12),
        "max_positions": ("n_positions", 1024),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "activation": ("activation_function", "gelu_new"),
        "dropout": ("resid_pdrop", 0.1),
        "initializer_range": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", True),
    },
    settings={
        "norm_position": "pre",
        "positions": "learned",
        "causal": True,
        "embedding_norm": False,
        "head_transform": False,
        "pooling": "last",
        "pooler": "none",
    },
    by_head={"causal_lm": {"output_bias": False}, "classification": {"output_bias": False}},
    tensors=tensors,
    only={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),  # a matter of float16 alone
        "add_cross_attention": (False, None),
    },
    aliases={"lm_head.weight": "transformer.wte.weight"},
    read_more=_read_more,
    write_more=lambda model: {"n_inner": model.intermediate_size},
)
