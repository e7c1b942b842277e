"""From a function of parameters and tokens to a model of ONNX that takes rows of any number and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import helper, numpy_helper

from lepton_jax.core import trees
from lepton_jax.infer.onnx import rules
from lepton_jax.infer.onnx.graph import SYMBOLS, Graph, Value, dtype, unsupported

OPSET, IR_VERSION = 20, 9  # of operators and of the file; ONNX Runtime reads them since 1.17, of 2024


def trace(
    function: Callable[..., Mapping[str, jax.Array]], params: Any, inputs: Sequence[str], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Returns a function as a model of ONNX.

    Args:
      function: takes (params, int32 [batch, length] for each input) and returns name -> array.
      params: its parameters: constants of the model, named by their paths.
      inputs: the names of the inputs, int64 there.
      metadata: texts that the model carries.

    Raises:
      UserError: the function must know batch or length, or does what has no rule in `rules`.
    """
    shape = tuple(export.symbolic_shape(", ".join(SYMBOLS)))
    spec = jax.ShapeDtypeStruct(shape, jnp.int32)
    try:
        with jax.disable_jit():  # loops over layers are unrolled by that
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *[spec] * len(inputs))
    except (jax.errors.JAXTypeError, jax.errors.InconclusiveDimensionOperation) as error:
        raise unsupported(f"to know the length of rows beforehand ({str(error).splitlines()[0]})") from None
    graph = Graph(inputs)
    leaves = {trees.path_str(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    graph.constants |= leaves
    values = [Value(leaf.shape, name) for name, leaf in leaves.items()]
    values += [Value(shape, graph.add("Cast", name, to=dtype(np.int32))) for name in inputs]
    found = dict(zip(sorted(shapes), rules.run(graph, closed, values), strict=True))  # leaves of a dict are sorted
    nodes = [helper.make_node("Identity", [graph.full(found[name])], [name], name=name) for name in shapes]
    nodes = _needed([*graph.nodes, *nodes], shapes)

    read = {name for node in nodes for name in node.input}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "lepton_jax",
            [helper.make_tensor_value_info(name, dtype(np.int64), SYMBOLS) for name in inputs],
            [
                helper.make_tensor_value_info(
                    name, dtype(out.dtype), [size if isinstance(size, int) else str(size) for size in out.shape]
                )
                for name, out in shapes.items()
            ],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in read],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lepton_jax",
    )
    helper.set_model_props(model, dict(metadata))
    return model


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Returns the nodes, in their order, that outputs depend on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
