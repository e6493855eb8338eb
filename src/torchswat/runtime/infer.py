"""Shapes, types and sizes of everything in a graph, from the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from torchswat.errors import InvalidData
from torchswat.runtime.graph import Graph, Node
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.rows import LARGEST, MOST_DIMENSIONS, TYPES, Operation, Shape, Value, count

SMALL = 2**14  # entries of values that are computed along with the shapes

Values = dict[str, Value]


def constant(array: np.ndarray) -> Value:
    """Return what is known of a tensor of the network."""
    return Value(array.shape, array.dtype, array if array.size <= SMALL else None)


def infer(
    graph: Graph,
    tensors: Mapping[str, Value],
    shapes: Mapping[str, Shape],
    table: Mapping[str, Operation] = OPERATIONS,
) -> Values:
    """Return what is known of every name in `graph`, for inputs of `shapes`.

    Raises
    ------
    InvalidData
        Something does not fit: the message names the node.
    """
    values: Values = dict(tensors)
    values |= {each.name: Value(shapes[each.name], TYPES[each.dtype]) for each in graph.inputs}
    for each in graph.nodes:
        inputs = [values[name] if name else None for name in each.inputs]
        values.update(zip(each.outputs, results(each, inputs, table[each.operation]), strict=False))
    return values


def results(node: Node, inputs: list[Value | None], row: Operation) -> list[Value]:
    """Return what is known of the results of a node."""
    try:
        found = row.rule(node.settings, *inputs)
        found = [found] if isinstance(found, Value) else found
        if len(found) < len(node.outputs):
            raise ValueError(f"it has {len(found)} results, and {len(node.outputs)} are read")
        for value in found:
            if count(value.shape) > LARGEST or len(value.shape) > MOST_DIMENSIONS:
                raise ValueError(f"its result would be of shape {value.shape}, which is too large")
        everything = all(value is None or value.known is not None for value in inputs)
        if everything and all(count(value.shape) <= SMALL for value in found):
            found = [Value(a.shape, a.dtype, a) for a in compute(node, row, [v and v.known for v in inputs])]
    except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise InvalidData(f"node {node.name!r:.60} ({node.operation}): {error}") from None
    return found


def compute(node: Node, row: Operation, arrays: list[np.ndarray | None]) -> list[np.ndarray]:
    """Run the body of a node."""
    with np.errstate(all="ignore"):
        made = row.body(node.settings, *arrays)
    made = made if isinstance(made, tuple) else (made,)
    return [_single(np.asarray(each)) for each in made]


def _single(array: np.ndarray) -> np.ndarray:
    """Return an array whose type a network has: float64 comes of means and powers inside of bodies."""
    return array.astype(np.float32) if array.dtype == np.float64 else array
