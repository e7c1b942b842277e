"""What an equation of a jaxpr is in ONNX: a rule for each primitive that our models are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jax.extend import core

from lepton_jax.infer.onnx import functions
from lepton_jax.infer.onnx.graph import Graph, Shape, Value, dtype, unsupported

# A rule takes the graph, the parameters of the equation, the shape and dtype of its first output, and its inputs. It
# returns the name of the output, those of several as a list, or a Value.
Rule = Callable[..., Any]


def run(graph: Graph, closed: Any, inputs: Sequence[Value]) -> list[Value]:
    """Adds a jaxpr to a graph and returns its outputs.

    Args:
      graph: gets the nodes.
      closed: a closed jaxpr.
      inputs: its inputs.

    Raises:
      UserError: an equation has no rule, or its rule does not cover it.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    consts = [Value(np.shape(const), array=np.asarray(const)) for const in getattr(closed, "consts", ())]
    known: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return Value((), array=np.asarray(atom.val, getattr(atom.aval, "dtype", None)))
        return known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        found = _apply(graph, equation, values)
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    name, parameters, out = equation.primitive.name, equation.params, equation.outvars[0].aval
    inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
    if name == "optimization_barrier":
        return inputs
    if name == "custom_vjp_call" and (found := functions.write(graph, inner, inputs)) is not None:
        return [Value(out.shape, found)]
    if inner is not None:
        return run(graph, inner, inputs)
    if name in ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if name not in RULES:
        raise unsupported(f"the operation {name!r}")
    found = RULES[name](graph, parameters, out, *inputs)
    if isinstance(found, Value):
        return [found]
    names = [found] if isinstance(found, str) else found
    return [Value(var.aval.shape, each) for var, each in zip(equation.outvars, names, strict=True)]


def _elementwise(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    out = equation.outvars[0].aval
    shape: Shape = out.shape
    thin = frozenset(
        axis
        for axis, size in enumerate(shape)
        if size != 1 and all(not value.shape or axis in value.thin for value in inputs)
    )
    arrays = [value.array for value in inputs if value.array is not None]
    if len(arrays) == len(inputs):  # what is known beforehand is computed beforehand
        array = np.asarray(equation.primitive.bind(*np.broadcast_arrays(*arrays), **equation.params))
        return Value(shape, array=array, thin=thin)
    rule = ELEMENTWISE[equation.primitive.name]
    names = [graph.thin(value) for value in inputs]
    found = graph.add(rule, *names) if isinstance(rule, str) else rule(graph, equation.params, out, *names)
    return Value(shape, found, thin=thin)


def _round(graph: Graph, parameters: Any, out: Any, x: str) -> str:
    if parameters["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise unsupported("rounding that is not to the nearest even number")
    return graph.add("Round", x)


# One node where the rule is a name.
ELEMENTWISE: dict[str, str | Rule] = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
    "convert_element_type": lambda graph, parameters, out, x: graph.add("Cast", x, to=dtype(out.dtype)),
    "integer_pow": lambda graph, parameters, out, x: graph.add("Pow", x, graph.constant(parameters["y"], out.dtype)),
    "log1p": lambda graph, parameters, out, x: graph.add("Log", graph.add("Add", x, graph.constant(1, out.dtype))),
    "ne": lambda graph, parameters, out, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "round": _round,
    "rsqrt": lambda graph, parameters, out, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": lambda graph, parameters, out, which, no, yes: graph.add("Where", which, yes, no),
    "square": lambda graph, parameters, out, x: graph.add("Mul", x, x),
}


def _broadcast_in_dim(graph: Graph, parameters: Any, out: Any, x: Value) -> Value:
    kept = parameters["broadcast_dimensions"]
    new = [axis for axis in range(len(out.shape)) if axis not in kept]
    thin = {axis for axis in new if out.shape[axis] != 1}
    thin |= {axis for old, axis in enumerate(kept) if old in x.thin or x.shape[old] != out.shape[axis]}
    if x.array is not None:
        return Value(out.shape, array=np.expand_dims(x.array, new), thin=frozenset(thin))
    name = graph.add("Unsqueeze", x.name, graph.integers(*new)) if new else x.name
    return Value(out.shape, name, thin=frozenset(thin))


def _reshape(graph: Graph, parameters: Any, out: Any, x: Value) -> Value:
    if x.array is not None and not x.thin:
        return Value(out.shape, array=x.array.reshape(out.shape))
    return Value(out.shape, graph.add("Reshape", graph.full(x), graph.sizes(out.shape, inferred=True)))


def _squeeze(graph: Graph, parameters: Any, out: Any, x: Value) -> str:
    return graph.add("Squeeze", graph.full(x), graph.integers(*parameters["dimensions"]))


def _transpose(graph: Graph, parameters: Any, out: Any, x: Value) -> Value:
    order = parameters["permutation"]
    thin = frozenset(axis for axis, old in enumerate(order) if old in x.thin)
    return Value(out.shape, graph.add("Transpose", graph.thin(x), perm=order), thin=thin)


def _concatenate(graph: Graph, parameters: Any, out: Any, *xs: Value) -> str:
    return graph.add("Concat", *(graph.full(x) for x in xs), axis=parameters["dimension"])


def _split(graph: Graph, parameters: Any, out: Any, x: Value) -> list[str]:
    sizes = parameters["sizes"]
    return graph.add("Split", graph.full(x), graph.sizes(sizes), outputs=len(sizes), axis=parameters["axis"])


def _slice(graph: Graph, parameters: Any, out: Any, x: Value) -> str:
    starts, stops = parameters["start_indices"], parameters["limit_indices"]
    steps = parameters["strides"] or (1,) * len(starts)
    bounds = [graph.sizes(starts), graph.sizes(stops), graph.integers(*range(len(starts))), graph.integers(*steps)]
    return graph.add("Slice", graph.full(x), *bounds)


def _reduce(op: str) -> Rule:
    def rule(graph: Graph, parameters: Any, out: Any, x: Value) -> str:
        return graph.add(op, graph.full(x), graph.integers(*parameters["axes"]), keepdims=0)

    return rule


def _cumsum(graph: Graph, parameters: Any, out: Any, x: Value) -> str:
    axis = graph.constant(parameters["axis"], np.int64)
    return graph.add("CumSum", graph.full(x), axis, reverse=int(parameters["reverse"]))


def _iota(graph: Graph, parameters: Any, out: Any) -> Value:
    axis, rank = parameters["dimension"], len(out.shape)
    others = [other for other in range(rank) if other != axis]
    thin = frozenset(other for other in others if out.shape[other] != 1)
    size = out.shape[axis]
    if isinstance(size, int):
        return Value(out.shape, array=np.expand_dims(np.arange(size, dtype=out.dtype), others), thin=thin)
    zero, one = (graph.constant(number, out.dtype) for number in (0, 1))
    name = graph.add("Range", zero, _scalar(graph, size, out.dtype), one)
    return Value(out.shape, graph.add("Unsqueeze", name, graph.integers(*others)) if others else name, thin=thin)


def _dim_as_value(graph: Graph, parameters: Any, out: Any) -> str:
    return _scalar(graph, parameters["dim"], out.dtype)


def _scalar(graph: Graph, size: Any, of: Any) -> str:
    return graph.add("Cast", graph.add("Squeeze", graph.size(size), graph.integers(0)), to=dtype(of))


def _gather(graph: Graph, parameters: Any, out: Any, x: Value, indices: Value) -> str | Value:
    """Covers whole slices at indices along one axis (`take`, `x[:, 0]`), and those of every row at its own
    (`take_along_axis` along the second axis). Indices outside are an error when the graph runs."""
    numbers, sizes = parameters["dimension_numbers"], parameters["slice_sizes"]
    axes, rank = numbers.start_index_map, len(indices.shape) - 1
    whole = all(sizes[axis] == size or axis in (*axes, *numbers.operand_batching_dims)
                for axis, size in enumerate(x.shape))  # fmt: skip
    if whole and len(axes) == 1 and numbers.collapsed_slice_dims == axes:
        axis = axes[0]
        if not numbers.operand_batching_dims:
            offsets = [*range(axis), *range(axis + rank, axis + rank + len(x.shape) - axis - 1)]
            if list(numbers.offset_dims) == offsets:
                at = graph.add("Squeeze", graph.thin(indices), graph.integers(-1))
                thin = frozenset(axis + each for each in indices.thin)  # equal indices, equal slices
                return Value(out.shape, graph.add("Gather", graph.full(x), at, axis=axis), thin=thin)
        rows = numbers.operand_batching_dims == numbers.start_indices_batching_dims == (0,)
        if rows and axis == 1 and list(numbers.offset_dims) == list(range(rank, len(out.shape))):
            at = graph.add("Cast", graph.full(indices), to=dtype(np.int64))
            return graph.add("GatherND", graph.full(x), at, batch_dims=1)
    raise unsupported("a gather that is not along one axis")


def _unsigned(graph: Graph, x: str) -> str:
    """Returns the name of an int8 array plus 128 as uint8, from the numbers that were rounded to it if there are any.

    Processors multiply uint8 by int8: ONNX Runtime takes 80 times as long for int8 by int8.
    """
    floats = graph.made_by("Cast", x) or graph.add("Cast", x, to=dtype(np.float32))
    floats = graph.made_by("Round", floats) or floats  # QuantizeLinear rounds, in the same way
    return graph.add("QuantizeLinear", floats, graph.constant(1, np.float32), graph.constant(128, np.uint8))


def _dot_general(graph: Graph, parameters: Any, out: Any, x: Value, y: Value) -> str:
    (x_sum, y_sum), (x_batch, y_batch) = parameters["dimension_numbers"]
    x_free, y_free = (
        [axis for axis in range(len(value.shape)) if axis not in (*summed, *batch)]
        for value, summed, batch in ((x, x_sum, x_batch), (y, y_sum, y_batch))
    )
    if not len(x_sum) == len(x_free) == len(y_free) == 1:
        raise unsupported("a product of several axes at once")
    names = []
    for value, order in ((x, [*x_batch, *x_free, *x_sum]), (y, [*y_batch, *y_sum, *y_free])):
        name = graph.full(value)
        names.append(name if order == sorted(order) else graph.add("Transpose", name, perm=order))
    if out.dtype != np.int32:
        return graph.add("MatMul", *names)
    return graph.add("MatMulInteger", _unsigned(graph, names[0]), names[1], graph.constant(128, np.uint8))


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "gather": _gather,
    "iota": _iota,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
