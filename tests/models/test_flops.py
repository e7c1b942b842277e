"""FLOPs by shapes alone against those of the products in the traced program, which owes the formula nothing."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.models.flops import forward_flops
from lepton_jax.models.transformer import Transformer, abstract_params

BASE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "intermediate_size": 24}
LENGTH, SCORED = 12, 4


def products(jaxpr: Any, times: int = 1) -> float:
    """Returns the FLOPs of every `dot_general` of a program, the body of a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * times * depth * math.prod(equation.outvars[0].aval.shape)
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                total += products(value.jaxpr, inner)
            elif isinstance(value, jax.extend.core.Jaxpr):
                total += products(value, inner)
    return total


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("masked_lm", {}),
        ("masked_lm", {"gated": True, "tied_head": False, "head_transform": False}),
        ("masked_lm", {"embedding_size": 8, "num_layers": 4, "num_layer_groups": 2}),
        ("masked_lm", {"relative": ("c2p", "p2c"), "relative_span": 5, "positions": "none"}),
        ("classification", {}),
        ("classification", {"pooler": "none"}),
        ("token_classification", {"pooler": "transform"}),
        ("replaced_token", {}),
        ("pooler", {}),
        ("none", {"positions": "learned"}),
    ],
)
def test_the_formula_counts_the_products_of_the_program(head: Any, changes: dict[str, Any]) -> None:
    model = Transformer(ModelConfig(**(BASE | changes)), head, 3)
    ids = jnp.zeros((1, LENGTH), jnp.int32)
    predict = jnp.zeros((1, SCORED), jnp.int32) if head == "masked_lm" else None
    apply = jax.make_jaxpr(lambda params: model.apply({"params": params}, ids, predict=predict))
    assert forward_flops(model, LENGTH, SCORED) == products(apply(abstract_params(model)).jaxpr)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_attention_counts_the_pairs_that_the_mask_lets_through(causal: bool, window: int) -> None:
    changes = {"causal": causal, "global_every": 2, "local_window": window}
    model = Transformer(ModelConfig(**BASE | changes), "none")
    pairs = 0
    for layer in range(3):
        for query in range(LENGTH):
            for key in range(LENGTH):
                near = layer % 2 == 0 or abs(query - key) <= window
                pairs += near and (not causal or key <= query)
    linear = 3 * LENGTH * (4 * 16 * 16 + 2 * 16 * 24)
    assert forward_flops(model, LENGTH, 0) == 2 * (linear + 2 * 16 * pairs)
