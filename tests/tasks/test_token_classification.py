"""What token classification promises attention. `test_classification.py` has its loss and its gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.models.transformer import Transformer, init_params
from lepton_jax.tasks.token_classification import TokenClassification


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_promised_to_be_one_text_only_where_it_is(packed):
    """On CPUs attention is the same either way; kernels of accelerators rely on the promise."""
    config = ModelConfig(
        vocab_size=32, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=8
    )
    model = Transformer(config, "token_classification", 3)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    promised = []

    class Watched:
        def apply(self, *arguments, **options):
            promised.append(options["packed"])
            return model.apply(*arguments, **options)

    task, numbers = TokenClassification(3, packed), jnp.ones((2, 8), jnp.int32)
    batch = {name: numbers for name in ("token_ids", "attention_mask", "positions", "labels")}
    batch["weight"] = jnp.ones(2)
    loss, _ = jax.eval_shape(lambda params: task.loss(Watched(), params, batch, jax.random.key(1)), params)
    logits = jax.eval_shape(lambda params: task.outputs(Watched(), params, batch), params)
    assert promised == [packed, False] and loss.shape == () and logits.shape == (2, 8, 3)
