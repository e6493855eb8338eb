"""Graphs are checked number by number; a wrong one is refused by the name of its node."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchswat.errors import InvalidData, InvalidValue
from torchswat.runtime.graph import Graph, Input, Node, node
from torchswat.runtime.infer import Value, constant, infer
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.rows import FLOAT

X = Input("input", ("batch", 3, "height", 8), (2, 3, 8, 8))
GRAPH = Graph(
    (X,),
    (
        node("Conv", ["input", "conv.weight", "conv.bias"], "conv", pads=(1, 1, 1, 1)),
        node("Relu", ["conv"], "relu"),
        node("MaxPool", ["relu"], "pool", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
        node("Reshape", ["pool", "sizes"], "flat"),
        node("Gemm", ["flat", "fc.weight"], "fc", transB=1),
    ),
    ("fc",),
)
SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (10, 64)}
NAMES = [*SHAPES, "sizes"]


def values(**changes: tuple[int, ...]) -> dict[str, Value]:
    """Return the tensors of the graph, of these shapes."""
    shapes = {**SHAPES, **{name.replace("__", "."): shape for name, shape in changes.items()}}
    return {
        **{name: Value(shape, FLOAT) for name, shape in shapes.items()},
        "sizes": constant(np.array([0, 64])),
    }


def test_shapes():
    found = infer(GRAPH, values(), GRAPH.examples)
    assert found["pool"].shape == (2, 4, 4, 4) and found["fc"].shape == (2, 10)


def test_it_comes_back_from_plain_values():
    found = Graph.from_json(copy.deepcopy(GRAPH.to_json()), NAMES)
    assert found == GRAPH


def test_defaults_are_allowed():
    for row in OPERATIONS.values():
        for setting in row.settings.values():
            assert setting.allows(setting.default), setting


@pytest.mark.parametrize(
    ("at", "key", "value", "words"),
    [
        (0, "outputs", [""], "must be text"),
        (0, "outputs", [3], "list of names"),
        (0, "operation", "exec", "unknown operation"),
        (0, "operation", ["Conv"], "unknown operation"),
        (0, "operation", "FusedConv", "unknown operation"),
        (0, "inputs", "input", "list of names"),
        (0, "inputs", [], "cannot have 0 inputs"),
        (0, "inputs", ["", "conv.weight"], "cannot have 1 inputs"),
        (0, "inputs", ["later", "conv.weight"], "no 'later' before it"),
        (0, "outputs", ["a", "b"], "has no 2 outputs"),
        (1, "outputs", ["conv"], "the name is taken"),
        (1, "outputs", ["conv.weight"], "the name is taken"),
        (4, "outputs", ["other"], "are made by no node"),
        (0, "settings", {}, "takes the settings"),
        (0, "settings", {"strides": [0, 1]}, "allowed is a list of whole numbers from 1"),
        (0, "settings", {"strides": [1.0, 1]}, "allowed is a list"),
        (0, "settings", {"pads": [10**9] * 4}, "allowed is a list"),
        (0, "settings", {"pads": [1] * 1000}, "allowed is a list"),
        (0, "settings", {"group": True}, "allowed is a whole number"),
        (0, "settings", {"auto_pad": "exec"}, "allowed is 'none' or"),
        (4, "settings", {"alpha": float("inf")}, "allowed is a number"),
    ],
)
def test_nodes_that_are_refused(at: int, key: str, value: Any, words: str):
    plain = copy.deepcopy(GRAPH.to_json())
    if key == "settings" and value:
        value = {**plain["nodes"][at]["settings"], **value}
    plain["nodes"][at][key] = value
    with pytest.raises(InvalidData, match=words):
        Graph.from_json(plain, NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"inputs": [3]},
        {"inputs": [{"name": "", "dtype": "float32", "shape": [], "example": []}]},
        {"inputs": [{"name": "x", "dtype": "object", "shape": [], "example": []}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [1], "example": []}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [1], "example": [2]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": ["n"], "example": [0]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [True], "example": [1]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": ["n"] * 2, "example": [2**20] * 2}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [1] * 20, "example": [1] * 20}]},
        {"nodes": []},
        {"nodes": [3]},
        {"nodes": [{}]},
        {"outputs": []},
        {"outputs": ["none"]},
        {"rows": 1},
        {"more": 1},
    ],
)
def test_graphs_that_are_refused(change: dict[str, Any]):
    with pytest.raises(InvalidData):
        Graph.from_json({**copy.deepcopy(GRAPH.to_json()), **change}, NAMES)


def test_a_tensor_that_nobody_reads():
    with pytest.raises(InvalidData, match="no node uses the tensor 'more'"):
        Graph.from_json(copy.deepcopy(GRAPH.to_json()), [*NAMES, "more"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv__bias": (5,)}, "node 'conv'.*does not fit 4 channels"),
        ({"conv__weight": (4, 2, 3, 3)}, "does not fit 3 channels"),
        ({"conv__weight": (4, 3, 11, 3)}, "a window of 11 does not fit"),
        ({"fc__weight": (10, 63)}, "node 'fc'.*cannot be multiplied"),
        ({"conv__weight": (2**30, 3, 3, 3), "conv__bias": (2**30,)}, "too large"),
    ],
)
def test_tensors_that_do_not_fit(changes: dict[str, tuple[int, ...]], words: str):
    with pytest.raises(InvalidData, match=words):
        infer(GRAPH, values(**changes), GRAPH.examples)


def test_sizes_may_not_depend_on_values():
    graph = Graph(
        (X, Input("more", (2,), (2,), "int64")),
        (Node("Reshape", ("input", "more"), ("y",), {"allowzero": 0}),),
        ("y",),
    )
    with pytest.raises(InvalidData, match="only sizes and constants may decide them"):
        infer(graph, {}, graph.examples)


def test_results_of_gigabytes_are_refused():
    huge = Graph((X,), (node("Expand", ["input", "sizes"], "y"),), ("y",))
    with pytest.raises(InvalidData, match="too large"):
        infer(huge, {"sizes": constant(np.array([2**28, 1, 1, 1, 1]))}, {"input": X.example})


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 9), (2, 4, 8, 8)])
def test_inputs_of_other_shapes(shape: tuple[int, ...]):
    assert GRAPH.check([(7, 3, 100, 8)]) == {"input": (7, 3, 100, 8)}
    with pytest.raises(InvalidValue, match=r"takes \(N, 3, height, 8\)"):
        GRAPH.check([shape])


def test_the_page_of_the_format_names_every_operation():
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    assert [name for name in OPERATIONS if f"`{name}`" not in page] == []
