"""What a family of other libraries' checkpoints is made of: how its config and its tensors map to ours.

A family is data, one file each: the fields of its config.json and the settings of `ModelConfig` they stand for, the
settings that all its models share, the features of theirs that this package has not, and the name of every tensor.
The same table serves reading and writing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Head

# Their names of activations -> ours; the first of several names for one of ours is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "mish": "mish",
}
_OUR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A parameter of ours and the tensor of theirs that holds it.

    `name` has "{layer}" where `path` is below `layers/`, whose arrays stack what they keep apart. In our orientation
    (after `transpose`), part number `part` of `parts` equal parts of the tensor's last axis is the parameter.
    """

    path: str
    name: str
    transpose: bool = False
    part: int = 0
    parts: int = 1
    first: int = 0  # the first layer that has it

    @property
    def stacked(self) -> bool:
        """Whether the parameter stacks one tensor a layer."""
        return self.path.startswith("layers/")


def linear(path: str, name: str, bias: bool = True) -> list[Tensor]:
    """Returns a linear layer's tensors; theirs is [out, in], as PyTorch has it."""
    return fused([path], name, bias)


def fused(paths: list[str], name: str, bias: bool = True, transpose: bool = True) -> list[Tensor]:
    """Returns the tensors of linear layers that are one layer of theirs, output beside output."""
    tensors = []
    for part, path in enumerate(paths):
        tensors.append(Tensor(f"{path}/kernel", f"{name}.weight", transpose, part, len(paths)))
        if bias:
            tensors.append(Tensor(f"{path}/bias", f"{name}.bias", False, part, len(paths)))
    return tensors


def norm(path: str, name: str, bias: bool = True, first: int = 0) -> list[Tensor]:
    """Returns a layer norm's tensors; of a stack, from the layer `first` on."""
    scale = [Tensor(f"{path}/scale", f"{name}.weight", first=first)]
    return [*scale, Tensor(f"{path}/bias", f"{name}.bias", first=first)] if bias else scale


def post_norm_block(layer: str, attention: str = "attention.self", names: tuple[str, ...] = ()) -> list[Tensor]:
    """Returns the tensors of a block as BERT names them, all but those of relative positions.

    Args:
      layer: the prefix of a layer, with "{layer}".
      attention: what holds query, key and value.
      names: of query, key and value.
    """
    query, key, value = names or ("query", "key", "value")
    return [
        *linear("layers/attention/query", f"{layer}.{attention}.{query}"),
        *linear("layers/attention/key", f"{layer}.{attention}.{key}"),
        *linear("layers/attention/value", f"{layer}.{attention}.{value}"),
        *linear("layers/attention/output", f"{layer}.attention.output.dense"),
        *norm("layers/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *linear("layers/feed_forward/up", f"{layer}.intermediate.dense"),
        *linear("layers/feed_forward/down", f"{layer}.output.dense"),
        *norm("layers/feed_forward_norm", f"{layer}.output.LayerNorm"),
    ]


def embeddings(prefix: str, model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of the embeddings as BERT names them."""
    return [
        Tensor("embeddings/token", f"{prefix}.word_embeddings.weight"),
        *([Tensor("embeddings/position", f"{prefix}.position_embeddings.weight")] * (model.positions == "learned")),
        *([Tensor("embeddings/type", f"{prefix}.token_type_embeddings.weight")] * (model.type_vocab_size > 0)),
        *norm("embeddings/norm", f"{prefix}.LayerNorm"),
    ]


def scores(decoder: str, bias: str, model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a masked-LM head's last layer, of those families that name its bias twice.

    In a tied model both names are one tensor. In an untied one `transformers` adds the layer's own, `{decoder}.bias`.
    """
    if model.tied_head:
        return [Tensor("head/bias", bias)]
    return [Tensor("head/bias", f"{decoder}.bias"), Tensor("head/kernel", f"{decoder}.weight", transpose=True)]


def position_ids(model: ModelConfig) -> np.ndarray:
    """Returns the buffer 0, 1, 2, ... [1, max_positions] that older checkpoints keep beside the parameters."""
    return np.arange(model.max_positions, dtype=np.int64)[None, :]


@dataclasses.dataclass(frozen=True)
class Family:
    """One family; see the top of this module."""

    model_type: str  # of config.json
    prefix: str  # of the encoder's tensors beside a head's, such as "bert"
    heads: Mapping[Head, str]  # head -> name of their class
    fields: Mapping[str, tuple[str, Any]]  # setting of ours -> (field of theirs, its default)
    settings: Mapping[str, Any]  # of ours, the same in all models of the family
    tensors: Callable[[ModelConfig, Head], list[Tensor]]
    by_head: Mapping[Head, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # settings with a head
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)  # field -> the values we have
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tensor -> the one it repeats, if tied
    buffers: Mapping[str, Callable[[ModelConfig], np.ndarray]] = dataclasses.field(default_factory=dict)
    read_more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write_more: Callable[[ModelConfig], dict[str, Any]] = lambda model: {}

    def require(self, head: str) -> None:
        """Raises UserError where the family does not have a head."""
        if head not in self.heads:
            raise UserError(f"head={head!r}: the family {self.model_type} has {', '.join(self.heads)}")

    def read(self, config: Mapping[str, Any], head: Head, where: str) -> ModelConfig:
        """Returns the settings that a config.json of the family stands for.

        Raises:
          UserError: the model has a feature that this package does not have; `where` names the file.
        """
        for field, allowed in self.only.items():
            if config.get(field, allowed[0]) not in allowed:
                known = " or ".join(map(repr, allowed))
                raise UserError(f"{where}: {field}={config[field]!r}: not supported, only {known}")
        values = {ours: config.get(theirs, default) for ours, (theirs, default) in self.fields.items()}
        for ours in filter(_is_activation, values):
            if values[ours] not in ACTIVATIONS:
                known = ", ".join(ACTIVATIONS)
                raise UserError(f"{where}: {self.fields[ours][0]}={values[ours]!r}: not supported; known: {known}")
            values[ours] = ACTIVATIONS[values[ours]]
        try:
            more = self.read_more(config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return ModelConfig(**{**values, **self.settings, **self.by_head.get(head, {}), **more})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns a config.json's fields for settings of ours; whether they say it all, `read` tells."""
        config: dict[str, Any] = {"model_type": self.model_type}
        for ours, (theirs, _) in self.fields.items():
            value = getattr(model, ours)
            config[theirs] = _OUR_ACTIVATIONS[value] if _is_activation(ours) else value
        return config | self.write_more(model)


def _is_activation(setting: str) -> bool:
    return setting.endswith("activation")
