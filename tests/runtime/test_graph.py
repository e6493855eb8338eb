"""Graphs are checked number by number; a wrong one is refused by the name of its node."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from torchswat.errors import InvalidData
from torchswat.runtime.graph import OPERATIONS, Graph, Node
from torchswat.runtime.plain import BODIES

CONVOLUTION = {"stride_h": 1, "stride_w": 1, "padding_h": 1, "padding_w": 1, "relu": 1}
GRAPH = Graph(
    (3, 8, 8),
    (
        Node("conv", "conv2d", ("input",), CONVOLUTION),
        Node("again", "conv2d", ("conv", "conv"), CONVOLUTION),
        Node("pool", "max_pool", ("again",), {"kernel": 3, "stride": 2, "padding": 1, "ceil": 0}),
        Node("flat", "flatten", ("pool",)),
        Node("fc", "linear", ("flat",), {"relu": 0}),
    ),
)
TENSORS = {
    "conv.weight": (4, 3, 3, 3),
    "conv.bias": (4,),
    "again.weight": (4, 4, 3, 3),
    "again.bias": (4,),
    "fc.weight": (10, 64),
    "fc.bias": (10,),
}


def test_shapes():
    shapes = GRAPH.shapes(TENSORS)
    assert shapes["pool"] == (4, 4, 4) and shapes["fc"] == (10,)


def test_it_comes_back_from_plain_values():
    assert Graph.from_json(GRAPH.to_json()) == GRAPH


def test_every_operation_has_a_body():
    assert BODIES.keys() == OPERATIONS.keys()


@pytest.mark.parametrize(
    ("node", "key", "value", "words"),
    [
        (0, "name", "", "must be text"),
        (0, "name", 3, "must be text"),
        (0, "operation", "exec", "unknown operation"),
        (0, "operation", ["conv2d"], "unknown operation"),
        (0, "inputs", "input", "list of names"),
        (0, "inputs", [], "cannot have 0 inputs"),
        (1, "inputs", ["conv"] * 3, "cannot have 3 inputs"),
        (0, "settings", {}, "takes the settings"),
        (0, "settings", {**CONVOLUTION, "stride_h": 0}, "allowed is 1 to"),
        (0, "settings", {**CONVOLUTION, "stride_h": 1.0}, "allowed is 1 to"),
        (0, "settings", {**CONVOLUTION, "relu": True}, "allowed is 0 to 1"),
        (0, "settings", {**CONVOLUTION, "padding_w": 10**9}, "allowed is 0 to"),
    ],
)
def test_nodes_that_are_refused(node: int, key: str, value: Any, words: str):
    values = copy.deepcopy(GRAPH.to_json())
    values["nodes"][node][key] = value
    with pytest.raises(InvalidData, match=words):
        Graph.from_json(values)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"input_shape": [3, 8], "nodes": [{}]},
        {"input_shape": [3, 8, 0], "nodes": [{}]},
        {"input_shape": [2**30, 2**30, 1], "nodes": [{}]},
        {"input_shape": [3, 8, 8], "nodes": []},
        {"input_shape": [3, 8, 8], "nodes": [3]},
    ],
)
def test_graphs_that_are_refused(values: Any):
    with pytest.raises(InvalidData):
        Graph.from_json(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv.bias": (5,)}, "do not fit 3 channels"),
        ({"conv.weight": (4, 2, 3, 3)}, "do not fit 3 channels"),
        ({"conv.weight": (4, 3, 11, 3)}, "a kernel of 11 does not fit"),
        ({"again.weight": (5, 4, 3, 3), "again.bias": (5,)}, "the residual"),
        ({"fc.weight": (10, 63)}, "do not fit the input"),
        ({"more": (1,)}, "no node uses the tensor 'more'"),
    ],
)
def test_tensors_that_do_not_fit(changes: dict[str, tuple[int, ...]], words: str):
    with pytest.raises(InvalidData, match=words):
        GRAPH.shapes({**TENSORS, **changes})


def test_flows_that_do_not_fit():
    def refused(words: str, *nodes: Node) -> None:
        with pytest.raises(InvalidData, match=words):
            Graph((3, 8, 8), nodes).shapes({})

    refused("no 'later' before it", Node("a", "flatten", ("later",)))
    refused("the name is taken", Node("input", "flatten", ("input",)))
    refused("not all there", GRAPH.nodes[0])
    refused(
        "cannot be added", Node("a", "flatten", ("input",)), Node("b", "add", ("input", "a"), {"relu": 0})
    )
    pool = {"kernel": 2, "stride": 2, "padding": 0}
    refused("works on maps", Node("a", "flatten", ("input",)), Node("b", "average_pool", ("a",), pool))
    refused(
        "put together", Node("a", "average_pool", ("input",), pool), Node("b", "concatenate", ("a", "input"))
    )
    refused("more than half", Node("a", "average_pool", ("input",), {**pool, "padding": 2}))
    huge = tuple(
        Node(f"a{i}", "subsample", (f"a{i - 1}",), {"stride": 1, "new_channels": 2**16})
        for i in range(1, 999)
    )
    refused("would be of shape", Node("a0", "relu", ("input",)), *huge)
