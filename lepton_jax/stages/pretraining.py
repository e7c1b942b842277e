"""The stage "pretrain": a tokenizer and a language model, masked or causal, from text."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lepton_jax import plan, processes
from lepton_jax.config import Config
from lepton_jax.core import trees
from lepton_jax.data import mixtures, shards, splits
from lepton_jax.data.rows import Rows
from lepton_jax.stages.completion import Summary
from lepton_jax.stages.training import Trainer
from lepton_jax.train.logging import read_metrics


def pretrain(config: Config, folder: Path, mesh: Mesh) -> Summary:
    """Trains a tokenizer and a language model, and returns what it achieved."""
    with processes.in_turn():
        data = splits.load_splits(config.data, None)
        tokenizer = plan.tokenizer_of(config.data, data.train.texts)
        card = plan.make_card(config, plan.head_of(config.task), tokenizer)
        common = (config.mesh.workers, jax.process_index() > 0, config.task.name != "causal_lm")
        mixture, measured = mixtures.encode(config.data, data.train, tokenizer, card.max_length, *common)
        held_out = shards.encode_documents(
            tokenizer, data.validation.texts, card.max_length, config.data.cache, *common
        )
    rows = {"train": Rows(mixture.rows), "validation": Rows(held_out)}
    trainer = Trainer(config, mesh, card, tokenizer, rows, sizes=mixture.sizes, weights=mixture.weights)
    bundle = trainer.fit(folder)
    history = processes.on_first(lambda: read_metrics(folder))
    losses = [line["loss"] for line in history if "loss" in line]

    def median(name: str) -> float | None:
        return float(np.median(found)) if (found := [line[name] for line in history if name in line]) else None

    best = min((line for line in history if "validation/loss" in line), key=lambda line: line["validation/loss"])
    summary = {
        "pretrain.loss_first": losses[0],
        "pretrain.loss_last": float(np.mean(losses[-max(len(losses) // 10, 1) :])),
        "pretrain.validation_loss": best["validation/loss"],
        "pretrain.tokens_per_second": median("tokens_per_second"),
        "pretrain.utilisation": median("utilisation"),
        "pretrain.parameters": trees.count(bundle.params),
        "pretrain.layer_parameters": trees.count(
            bundle.params["layers"]
        ),  # what scaling laws count (Kaplan et al. 2020)
        "pretrain.data": data.report | {"tokens": measured},
    }
    if config.task.name == "causal_lm":
        own = {"next_accuracy": best["validation/accuracy"], "perplexity": best["validation/perplexity"]}
    else:
        own = {"masked_accuracy": best["validation/accuracy"]}
    return summary | {f"pretrain.{name}": value for name, value in own.items()}
