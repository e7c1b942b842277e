"""A task whose model multiplies by something made of the parameters, in place of the parameters themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lepton_jax.models.transformer import Head, Transformer


@dataclasses.dataclass(frozen=True)
class Viewed:
    """A task of which `view` maps the parameters that are trained to those that the model applies, and the gradient
    comes through it. What is kept, shared out and updated are the parameters."""

    task: Any
    view: Callable[[Any], Any]

    @property
    def head(self) -> Head:
        """See `Task.head`."""
        return self.task.head

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`."""
        return self.task.num_outputs

    def scored(self, length: int) -> int:
        """See `Task.scored`."""
        return self.task.scored(length)

    def loss(
        self, model: Transformer, params: Any, batch: dict[str, jax.Array], rng: jax.Array, train: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Task.loss`."""
        return self.task.loss(model, self.view(params), batch, rng, train)

    def outputs(self, model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """See `LabelledTask.outputs`."""
        return self.task.outputs(model, self.view(params), batch)
