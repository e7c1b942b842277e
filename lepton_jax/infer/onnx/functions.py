"""Functions of ours that ONNX has an operator for: runtimes have fast programs for these.

They are told by their names, which a jaxpr keeps: all have a gradient of their own. What is not recognised here is
written equation by equation, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from lepton_jax.infer.onnx.graph import Graph, Value


def write(graph: Graph, closed: Any, inputs: Sequence[Value]) -> str | None:
    """Returns the name of what the function of a jaxpr gives, None where ONNX has no operator for it."""
    jaxpr = getattr(closed, "jaxpr", closed)
    function = _FUNCTIONS.get(jaxpr.debug_info.func_name)
    return None if function is None or not inputs else function(graph, jaxpr, *inputs)


def _number(jaxpr: Any, primitive: str) -> float | None:
    """Returns the number that one equation of a primitive has as an operand; None where not just one has."""
    equations = [equation for equation in jaxpr.eqns if equation.primitive.name == primitive]
    found = [atom.val for equation in equations for atom in equation.invars if isinstance(atom, core.Literal)]
    return float(found[0]) if len(found) == 1 else None


def _gelu(graph: Graph, jaxpr: Any, x: Value) -> str:
    del jaxpr
    return graph.add("Gelu", graph.full(x))


def _layer_norm(graph: Graph, jaxpr: Any, x: Value, *scale_and_bias: Value) -> str | None:
    epsilon = _number(jaxpr, "add")
    if epsilon is None:
        return None
    return graph.add("LayerNormalization", *map(graph.full, (x, *scale_and_bias)), axis=-1, epsilon=epsilon)


def _softmax_attention(graph: Graph, jaxpr: Any, q: Value, k: Value, v: Value, *more: Value) -> str | None:
    """What a query that sees no key gets is another thing here: the mean of all values, not 0. No token is one."""
    scale = _number(jaxpr, "mul")
    if scale is None:
        return None
    products = graph.add("MatMul", graph.full(q), graph.add("Transpose", graph.full(k), perm=(0, 1, 3, 2)))
    logits = graph.add("Mul", products, graph.constant(scale, np.float32))
    for variable, each in zip(jaxpr.invars[3:], more, strict=True):
        added = graph.thin(each)
        if variable.aval.dtype == bool:  # whether a query sees a key, else a bias
            added = graph.add("Where", added, *(graph.constant(number, np.float32) for number in (0, -1e30)))
        logits = graph.add("Add", logits, added)
    return graph.add("MatMul", graph.add("Softmax", logits, axis=-1), graph.full(v))


_FUNCTIONS: dict[str, Callable[..., str | None]] = {
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "softmax_attention": _softmax_attention,
}
