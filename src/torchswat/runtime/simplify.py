"""Simplify a graph before it is saved: fold constants and batch norms, remove what no output needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchswat.errors import InvalidData
from torchswat.runtime.graph import Graph, Node
from torchswat.runtime.infer import compute, constant, results
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.norms import batch_scale

Tensors = dict[str, np.ndarray]

LARGEST_FOLDED = 2**20  # entries that a constant may have beyond eight times those of its sources


def simplify(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Return a graph that computes the same with fewer nodes, and its tensors."""
    graph, tensors = fold_constants(graph, tensors)
    graph, tensors = fold_batch_norms(graph, tensors)
    return without_unread(graph, tensors)


def fold_constants(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Compute what depends on tensors alone, and remove nodes that return their input."""
    tensors, nodes = dict(tensors), list[Node]()
    same: dict[str, str] = {}
    for each in graph.nodes:
        each = replace(each, inputs=tuple(same.get(name, name) for name in each.inputs))
        read = [name for name in each.inputs if name]
        if each.operation == "Identity":
            same[each.name] = each.inputs[0]
            continue
        if all(name in tensors for name in read) and not _is_weight_of_bytes(each, tensors):
            sources = [tensors[name] if name else None for name in each.inputs]
            made = _computed(each, sources)
            if made is not None:
                tensors |= zip(each.outputs, made, strict=False)
                continue
        nodes.append(each)
    outputs = tuple(same.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs), tensors


def _is_weight_of_bytes(node: Node, tensors: Tensors) -> bool:
    """Return whether a node makes float32 of a convolution's int8 weight, which stays what it is in a file."""
    return (
        node.operation == "DequantizeLinear"
        and (w := tensors[node.inputs[0]]).dtype == np.int8
        and w.ndim == 4
    )


def _computed(node: Node, sources: list[np.ndarray | None]) -> list[np.ndarray] | None:
    size = sum(each.size for each in sources if each is not None)
    if node.operation in ("Expand", "Tile", "Fill", "Range", "Resize", "Pad", "OneHot"):
        row = OPERATIONS[node.operation]
        found = results(node, [each if each is None else constant(each) for each in sources], row)
        if sum(int(np.prod(value.shape, dtype=object)) for value in found) > LARGEST_FOLDED + 8 * size:
            return None
    try:
        return [
            np.ascontiguousarray(each).reshape(each.shape)
            for each in compute(node, OPERATIONS[node.operation], sources)
        ]
    except (ValueError, TypeError, IndexError) as error:
        raise InvalidData(f"node {node.name!r:.60} ({node.operation}): {error}") from None


def fold_batch_norms(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Fold a batch norm into the convolution or product before it, in float64, where nothing else reads its result."""
    read, tensors = graph.readers(), dict(tensors)
    makers = {each.name: each for each in graph.nodes}
    same: dict[str, str] = {}
    for each in graph.nodes:
        if each.operation != "BatchNormalization" or not all(name in tensors for name in each.inputs[1:]):
            continue
        before = makers.get(each.inputs[0])
        axis = None if before is None else _AXIS.get(before.operation)
        if before is None or axis is None or read[before.name] != 1 or each.name in graph.outputs:
            continue
        names = before.inputs[1:]
        if not all(name in tensors for name in names) or (before.settings.get("group", 1) != 1 and axis):
            continue
        if before.operation == "Gemm" and (before.settings["alpha"], before.settings["beta"]) != (1, 1):
            continue
        factor, shift = batch_scale(each.settings, *(tensors[name] for name in each.inputs[1:]))
        weight = tensors[names[0]]
        if before.operation == "Gemm":
            axis = 0 if before.settings["transB"] else 1
        bias = tensors[names[1]] if names[1:] else np.zeros(len(factor), np.float32)
        if bias.shape != factor.shape or weight.shape[axis] != len(factor):
            continue
        shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
        wanted = names[0], names[1] if names[1:] else f"{before.name}.bias"
        own = [_free(name, tensors, read) for name in wanted]
        tensors[own[0]] = (weight * factor.reshape(shape)).astype(np.float32)
        tensors[own[1]] = (bias * factor + shift).astype(np.float32)
        makers[before.name] = replace(before, inputs=(before.inputs[0], *own))
        same[each.name] = before.name
    nodes = [makers[each.name] for each in graph.nodes if each.name not in same]
    nodes = [replace(each, inputs=tuple(same.get(name, name) for name in each.inputs)) for each in nodes]
    return replace(graph, nodes=tuple(nodes)), tensors


_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}
"""The axis of the weight that counts the channels of the result."""


def _free(name: str, tensors: Tensors, read: dict[str, int]) -> str:
    """Return a name under which a changed tensor may stand: its own where it is read once."""
    while name in tensors and read[name] != 1:
        name += ".folded"
    return name


def without_unread(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Return the graph without nodes and tensors that no output needs."""
    wanted, nodes = set(graph.outputs), list[Node]()
    for each in reversed(graph.nodes):
        if wanted & set(each.outputs):
            nodes.append(each)
            wanted.update(each.inputs)
    kept = {name: tensor for name, tensor in tensors.items() if name in wanted}
    return replace(graph, nodes=tuple(reversed(nodes))), kept
