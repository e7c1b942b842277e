"""How exactly does a checkpoint that `hub.load` reads compute what `transformers` computes with it, and back?

    pip install -e '.[parity]'
    python experiments/hub_parity.py [--families=bert,gpt2]

Each family, head and variant is a small checkpoint with random weights that `transformers` (PyTorch, CPU, float32)
writes; both sides then run it on the same batch, whose rows are as long as the model allows or padded, one of them in
the middle. Cost: about two minutes on two cores.

How to read it: a row is a family and head, over its variants; a figure is the largest difference over all positions
that are not padding, relative to the largest magnitude; `gradient` is that of a loss by the token embedding table;
`saved` compares the logits (hidden states where there are none) of the original with those of the checkpoint that
`hub.save` wrote, both in `transformers`, and is "renamed" where a tensor's name or dtype is another than before.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from absl import app, flags
from safetensors import safe_open

from lepton_jax import hub

FAMILIES = flags.DEFINE_list("families", [], "Families to compare; all by default.")

_SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 72, "max_position_embeddings": 40}  # fmt: skip
_ODD = {"vocab_size": 101, "hidden_size": 45, "num_hidden_layers": 1, "num_attention_heads": 5,
        "intermediate_size": 31, "max_position_embeddings": 23}  # fmt: skip
_MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_RELATIVE = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


@dataclasses.dataclass(frozen=True)
class Case:
    """A variant of a family: what differs in its config, and the heads that are compared."""

    family: str
    variant: str
    prefix: str  # of the classes in `transformers`
    changes: dict[str, Any]
    heads: tuple[str, ...] = ("ForMaskedLM",)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the class

    def __str__(self) -> str:
        return f"{self.family}, {self.variant}"


CASES = (
    Case("bert", "plain", "Bert", _SIZES, _HEADS),
    Case("bert", "odd sizes, relu, epsilon 1e-5", "Bert", _ODD | {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    Case("bert", "untied, one token type, gelu_new", "Bert",
         _SIZES | {"tie_word_embeddings": False, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    Case("bert", "without a pooler", "Bert", _SIZES, ("Model",), {"add_pooling_layer": False}),
    Case("roberta", "plain", "Roberta", _SIZES | {"type_vocab_size": 1}, _HEADS),
    Case("roberta", "odd sizes, padding id 3, silu", "Roberta", _ODD | {"pad_token_id": 3, "hidden_act": "silu"}),
    Case("xlm-roberta", "plain", "XLMRoberta", _SIZES | {"type_vocab_size": 1}, _HEADS),
    Case("xlm-roberta", "untied", "XLMRoberta", _SIZES | {"tie_word_embeddings": False}),
    Case("distilbert", "plain", "DistilBert",
         {"vocab_size": 97, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 72, "max_position_embeddings": 40},
         _HEADS),
    Case("distilbert", "odd sizes, relu, sinusoidal", "DistilBert",
         {"vocab_size": 101, "dim": 46, "n_layers": 1, "n_heads": 2, "hidden_dim": 31, "max_position_embeddings": 23,
          "activation": "relu", "sinusoidal_pos_embds": True}),
    Case("electra", "plain", "Electra", _SIZES | {"embedding_size": 24}, (*_HEADS, "ForPreTraining")),
    Case("electra", "embeddings of the hidden size, tanh", "Electra",
         _ODD | {"embedding_size": 45, "hidden_act": "tanh"}, ("ForMaskedLM", "ForPreTraining")),
    Case("albert", "plain", "Albert", _SIZES | {"embedding_size": 24}, _HEADS),
    Case("albert", "two groups of two layers, mish", "Albert",
         _SIZES | {"embedding_size": 17, "num_hidden_layers": 4, "num_hidden_groups": 2, "hidden_act": "mish"}),
    Case("deberta-v2", "as version 3", "DebertaV2",
         _SIZES | _RELATIVE | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
                               "pos_att_type": ["p2c", "c2p"]}, _HEADS),
    Case("deberta-v2", "own projections, no buckets, positions", "DebertaV2",
         _SIZES | {"relative_attention": True, "pos_att_type": "c2p", "type_vocab_size": 2}),
    Case("deberta-v2", "p2c alone, odd sizes", "DebertaV2",
         _ODD | _RELATIVE | {"pos_att_type": "p2c", "position_buckets": 6, "share_att_key": True}),
    Case("deberta-v2", "without relative attention", "DebertaV2", _SIZES),
    Case("modernbert", "plain", "ModernBert", _SIZES | _MODERN | {"local_attention": 8}, _HEADS),
    Case("modernbert", "biases, mean, global every second layer", "ModernBert",
         _SIZES | _MODERN | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
                             "decoder_bias": False, "classifier_pooling": "mean", "local_attention": 6,
                             "global_attn_every_n_layers": 2}, ("ForMaskedLM", "ForSequenceClassification")),
    Case("gpt2", "plain", "GPT2", {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 40,
                                   "pad_token_id": 0},
         ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification")),
    Case("gpt2", "odd sizes, own width, untied, relu", "GPT2",
         {"vocab_size": 101, "n_embd": 45, "n_layer": 1, "n_head": 5, "n_positions": 23, "n_inner": 31,
          "activation_function": "relu", "tie_word_embeddings": False, "pad_token_id": 0}, ("LMHeadModel",)),
)  # fmt: skip


def make_checkpoint(case: Case, head: str, folder: Path) -> Any:
    """Writes a checkpoint with random weights, biases and scales too; returns the model in evaluation mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.prefix}Config")(**case.changes)
    if "Classification" in head:
        config.num_labels = 3
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{case.prefix}{head}")(config, **case.options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.1))
    model.save_pretrained(folder)
    return model


def make_batch(config: Any) -> dict[str, np.ndarray]:
    """Returns three rows of the longest length: full, padded at the end, and padded in the middle too."""
    padding = config.pad_token_id or 0
    offset = padding + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    length = config.max_position_embeddings - offset
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (3, length)).astype(np.int32)
    mask = np.ones((3, length), np.int32)
    mask[1, length // 2 :] = 0
    if config.model_type != "gpt2":  # whose classifier looks for the last token by its id, at the end of a row
        mask[2, 3:6] = 0
    batch = {"input_ids": np.where(mask > 0, ids, padding), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) == 2:
        batch["token_type_ids"] = np.broadcast_to(np.arange(length) > 7, ids.shape).astype(np.int32)
    return batch


def compare(case: Case, head: str, folder: Path) -> dict[str, Any]:
    """Returns what the table shows of a case and head: name -> relative difference."""
    theirs = make_checkpoint(case, head, folder / "theirs")
    batch = make_batch(theirs.config)
    real = batch["attention_mask"] > 0
    tensors = {name: torch.from_numpy(value).long() for name, value in batch.items()}
    out = theirs(**tensors, output_hidden_states=True)
    bundle = hub.load(folder / "theirs")
    inputs = (batch["input_ids"], batch["attention_mask"])

    key = "logits" if "logits" in out else "last_hidden_state"

    def loss(table: jax.Array, params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of every output, smooth and not symmetric; and the outputs."""
        params = {**params, "embeddings": {**params["embeddings"], "token": table}}
        types: Any = batch.get("token_type_ids")
        ours: Any = bundle.model.apply({"params": params}, *inputs, token_type_ids=types, hidden_states=True)
        value = ours["logits" if key == "logits" else "hidden"]
        return jnp.sum(jnp.sin(value[real] if value.shape[:2] == real.shape else value)), ours

    gradient, ours = jax.jit(jax.grad(loss, has_aux=True))(bundle.params["embeddings"]["token"], bundle.params)
    if len(ours["hidden_states"]) != len(out.hidden_states):
        raise ValueError(f"{len(ours['hidden_states'])} hidden states here, {len(out.hidden_states)} there")
    states = [*zip(ours["hidden_states"], out.hidden_states, strict=True), (ours["hidden"], out.hidden_states[-1])]
    if "last_hidden_state" in out:
        states.append((ours["hidden"], out.last_hidden_state))
    found: dict[str, Any] = {"hidden": max(_relative(own, other, real) for own, other in states)}
    if key == "logits":
        found["logits"] = _relative(ours["logits"], out.logits, real)
    if getattr(out, "pooler_output", None) is not None:
        found["pooled"] = _relative(ours["pooled"], out.pooler_output, real)

    torch.sin(out[key][torch.from_numpy(real)] if out[key].shape[:2] == real.shape else out[key]).sum().backward()
    expected = theirs.get_input_embeddings().weight.grad
    found["gradient"] = _relative(gradient, expected, real)

    hub.save(folder / "again", bundle)
    again = type(theirs).from_pretrained(folder / "again", **case.options).eval()
    again.config._attn_implementation = "eager"
    with torch.no_grad():
        found["saved"] = _relative(again(**tensors)[key].numpy(), out[key], real)
    if _types(folder / "theirs") != _types(folder / "again"):
        found["saved"] = "renamed"
    return found


def _relative(ours: Any, theirs: torch.Tensor, real: np.ndarray) -> float:
    a, b = np.asarray(ours), theirs.detach().numpy()
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} here, {b.shape} there")
    if a.shape[:2] == real.shape:
        a, b = a[real], b[real]
    return float(np.abs(a - b).max() / np.abs(b).max())


def _types(folder: Path) -> dict[str, str]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def main(argv: list[str]) -> None:
    del argv
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in CASES:
        if FAMILIES.value and case.family not in FAMILIES.value:
            continue
        for head in case.heads:
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault((case.family, f"{case.prefix}{head}"), []).append(compare(case, head, Path(folder)))
    columns = ("hidden", "pooled", "logits", "gradient", "saved")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, jax {jax.__version__}\n")
    print("| family | class | variants | " + " | ".join(columns) + " |\n|---|---|---|" + "---|" * len(columns))
    for (family, name), figures in found.items():
        cells = [_worst([figure[column] for figure in figures if column in figure]) for column in columns]
        print(f"| {family} | {name} | {len(figures)} | " + " | ".join(cells) + " |")


def _worst(values: list[Any]) -> str:
    names = [value for value in values if isinstance(value, str)]
    return names[0] if names else f"{max(values):.0e}" if values else ""


if __name__ == "__main__":
    app.run(main)
