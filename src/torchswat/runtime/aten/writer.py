"""Nodes and tensors of a graph as they are written, and the table of what writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchswat.runtime.graph import Node, node

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float32",
    torch.float16: "float32",
    torch.bfloat16: "float32",
    torch.int64: "int64",
    torch.int32: "int64",
    torch.int16: "int64",
    torch.int8: "int64",
    torch.uint8: "int64",
    torch.bool: "bool",
}
"""The type in which a graph computes what torch computes in another."""


class Unsupported(Exception):
    """A call that no operation of a graph computes."""


@dataclass(frozen=True)
class Made:
    """A tensor: its name in the graph, and the fake tensor of `torch.export` with its shape and type."""

    name: str
    value: Tensor

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return self.value.dim()

    @property
    def dtype(self) -> str:
        """Its type in the graph."""
        return DTYPES[self.value.dtype]


@dataclass(frozen=True)
class Size:
    """A number that depends on sizes: the name of a row of one entry."""

    name: str


Number = Any
"""A number of Python, or a `Size`."""


class Writer:
    """Nodes and tensors as they are written; `call` is the fake result of the current call."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.constants: dict[tuple[Any, ...], str] = {}
        self.taken: set[str] = set()
        self.prefix = ""
        self.call: Any = None

    def name(self, wanted: str) -> str:
        """Return a name that is free."""
        name, number = wanted, 1
        while name in self.taken:
            name, number = f"{wanted}.{number}", number + 1
        self.taken.add(name)
        return name

    def add(self, operation: str, *inputs: str, **settings: Any) -> str:
        """Append an operation of one result, and return its name."""
        name = self.name(self.prefix)
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.nodes.append(node(operation, inputs, name, **settings))
        return name

    def many(self, operation: str, outputs: int, *inputs: str, **settings: Any) -> list[str]:
        """Append an operation of several results, and return their names."""
        names = [self.name(self.prefix) for _ in range(outputs)]
        self.nodes.append(node(operation, inputs, names, **settings))
        return names

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """Return the name of a constant."""
        array = np.asarray(values, dtype)
        key = dtype, array.shape, array.tobytes()
        if key not in self.constants:
            name = self.constants[key] = self.name(f"constant.{len(self.constants)}")
            self.tensors[name] = array
        return self.constants[key]

    def sizes(self, values: Sequence[Number]) -> str:
        """Return the name of a row of sizes."""
        if not any(isinstance(each, Size) for each in values):
            return self.constant([int(each) for each in values])
        parts = [each.name if isinstance(each, Size) else self.constant([each]) for each in values]
        return self.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def operand(self, value: Made | Number, dtype: str) -> str:
        """Return the name of a tensor or number, in a type."""
        if isinstance(value, Made):
            return value.name if value.dtype == dtype else self.add("Cast", value.name, to=dtype)
        if isinstance(value, Size):
            return self.add("Cast", self.add("Reshape", value.name, self.constant(np.zeros(0))), to=dtype)
        return self.constant(value, dtype)

    @property
    def dtype(self) -> str:
        """The type of the result at hand."""
        return DTYPES[self.call.dtype]

    def shape_of(self, made: Made) -> list[Number]:
        """Return the sizes of a tensor, fixed where `torch.export` has numbers."""
        return [self.size(made, axis) for axis in range(made.rank)]

    def size(self, made: Made, axis: int) -> Number:
        """Return one size of a tensor."""
        axis %= made.rank
        size = made.value.shape[axis]
        return size if isinstance(size, int) else Size(self.add("Shape", made.name, start=axis, end=axis + 1))


Function = Callable[..., Any]
TABLE: dict[str, Function] = {}


def on(*targets: str) -> Callable[[Function], Function]:
    """Enter a function into the table under names such as ``relu.default``."""

    def enter(function: Function) -> Function:
        TABLE.update(dict.fromkeys(targets, function))
        return function

    return enter


def name_of(made: Made | None) -> str:
    """Return the name of a tensor that may be left out."""
    return "" if made is None else made.name


def scaled(w: Writer, name: str, factor: float) -> str:
    """Return the name of a tensor times a number."""
    return name if factor == 1 else w.add("Mul", name, w.constant(factor, "float32"))
