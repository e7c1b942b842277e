"""A graph of ONNX while it grows: its nodes, its constants, and what is known of the values between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from lepton_jax.core.errors import UserError

Shape = tuple[Any, ...]  # sizes: numbers, or expressions of the symbols
SYMBOLS = ("batch", "length")  # the shape of every input


@dataclasses.dataclass(frozen=True)
class Value:
    """What a variable of a jaxpr is in the graph.

    `name` names it there; where it is known beforehand, `array` holds it and `name` is empty. On the axes in `thin` it
    has size 1 in place of what `shape` says, and stands for as many equal entries: elementwise nodes broadcast by
    themselves, so that a broadcast costs nothing until something else reads it.
    """

    shape: Shape
    name: str = ""
    array: np.ndarray | None = None
    thin: frozenset[int] = frozenset()


class Graph:
    """Nodes and constants in the order in which they are added; equal ones are added once."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._input = inputs[0]  # where sizes are read

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node and returns the name of its output, or of several as a list."""
        key = (op, inputs, outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            first = f"{op}_{len(self.nodes)}"
            names = [first] if outputs == 1 else [f"{first}_{number}" for number in range(outputs)]
            self.nodes.append(helper.make_node(op, inputs, names, name=first, **attributes))
            self._known[key] = names[0] if outputs == 1 else names
            self._makers[first] = self.nodes[-1]
        return self._known[key]

    def made_by(self, op: str, name: str) -> str | None:
        """Returns the first input of the node whose output has a name, None where that is no `op`."""
        maker = self._makers.get(name)
        return maker.input[0] if maker is not None and maker.op_type == op else None

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of an array that is known beforehand."""
        array = np.asarray(value, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def integers(self, *values: int) -> str:
        """Returns the name of a constant int64 [len(values)]."""
        return self.constant(values, np.int64)

    def size(self, size: Any) -> str:
        """Returns the name of int64 [1]: a size, which may be a product of symbols."""
        product = None
        for factor in str(size).split("*"):
            if factor in SYMBOLS:
                axis = SYMBOLS.index(factor)
                name = self.add("Shape", self._input, start=axis, end=axis + 1)
            elif factor.isdigit():
                name = self.integers(int(factor))
            else:
                raise unsupported(f"the size {size}")
            product = name if product is None else self.add("Mul", product, name)
        assert product is not None
        return product

    def sizes(self, shape: Shape, inferred: bool = False) -> str:
        """Returns the name of int64 [rank], a shape; if `inferred`, with -1 for the last size that is no number."""
        known = list(shape)
        symbolic = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if inferred and symbolic:
            known[symbolic.pop()] = -1
        if not symbolic:
            return self.integers(*known)
        return self.add("Concat", *(self.integers(-1) if size == -1 else self.size(size) for size in known), axis=0)

    def thin(self, value: Value) -> str:
        """Returns the name of a value that has size 1 on its thin axes."""
        return value.name if value.array is None else self.constant(value.array)

    def full(self, value: Value) -> str:
        """Returns the name of a value in its whole shape."""
        return self.add("Expand", self.thin(value), self.sizes(value.shape)) if value.thin else self.thin(value)


def dtype(of: Any) -> int:
    """Returns the number by which ONNX knows a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(of))


def unsupported(what: str) -> UserError:
    return UserError(f"ONNX: the model needs {what}, which cannot be written")
