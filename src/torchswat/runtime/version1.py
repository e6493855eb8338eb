"""Files of the format ``torchswat network 1``, whose nodes had tensors and a ReLU of their own, as a graph of today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchswat.errors import InvalidData
from torchswat.runtime.container import Arrays, is_sizes
from torchswat.runtime.graph import BATCH, MOST_NODES, Graph, Input, Node, node
from torchswat.runtime.operations.rows import LARGEST, count

FORMAT = "torchswat network 1"
INPUT = "input"

_STEP, _EDGE, _BIT = (1, 2**16), (0, 2**16), (0, 1)
_WINDOW = {"kernel": _STEP, "stride": _STEP, "padding": _EDGE}
_CONVOLUTION = {"stride_h": _STEP, "stride_w": _STEP, "padding_h": _EDGE, "padding_w": _EDGE, "relu": _BIT}


@dataclass(frozen=True)
class _Row:
    """The settings of an operation with their ranges, its tensors, and how many inputs it takes."""

    settings: Mapping[str, tuple[int, int]]
    tensors: tuple[str, ...] = ()
    inputs: tuple[int, int] = (1, 1)


_ROWS = {
    "conv2d": _Row(_CONVOLUTION, ("weight", "bias"), (1, 2)),
    "linear": _Row({"relu": _BIT}, ("weight", "bias")),
    "affine": _Row({"relu": _BIT}, ("scale", "shift")),
    "add": _Row({"relu": _BIT}, (), (2, 2)),
    "relu": _Row({}),
    "max_pool": _Row({**_WINDOW, "ceil": _BIT}),
    "average_pool": _Row(_WINDOW),
    "adaptive_average_pool": _Row({"size": _STEP}),
    "concatenate": _Row({}, (), (1, MOST_NODES)),
    "subsample": _Row({"stride": _STEP, "new_channels": _EDGE}),
    "flatten": _Row({}),
}


def convert(values: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Graph, Arrays]:
    """Return the graph that plain values of the old format describe, and the constants that it needs besides.

    `shapes` are those of the tensors in the file.

    Raises
    ------
    InvalidData
        They are not what the old format allows.
    """
    if not isinstance(values, dict) or set(values) != {"input_shape", "nodes"}:
        raise InvalidData(f"a network is an input_shape and nodes, not {values!r:.80}")
    shape, nodes = values["input_shape"], values["nodes"]
    if not is_sizes(shape) or len(shape) != 3 or not 0 < count(shape) <= LARGEST:
        raise InvalidData(f"the input_shape must be [channels, height, width], not {shape!r:.80}")
    if not isinstance(nodes, list) or not 0 < len(nodes) <= MOST_NODES:
        raise InvalidData(f"a network needs a list of 1 to {MOST_NODES} nodes")
    converter = _Converter(shapes)
    for each in nodes:
        converter.take(each)
    first = Input(INPUT, (BATCH, *shape), (1, *shape))
    graph = Graph((first,), tuple(converter.nodes), (converter.last,))
    graph.check_names([*shapes, *converter.constants])
    return graph, converter.constants


class _Converter:
    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.nodes: list[Node] = []
        self.constants: Arrays = {}
        self.last = ""

    def take(self, values: Any) -> None:
        """Append what a node of the old format is today."""
        if not isinstance(values, dict) or set(values) != {"name", "operation", "inputs", "settings"}:
            raise InvalidData(f"a node is a name, operation, inputs and settings, not {values!r:.80}")
        name, operation, inputs, settings = (
            values[key] for key in ("name", "operation", "inputs", "settings")
        )
        if not isinstance(name, str) or not name:
            raise InvalidData(f"the name of a node must be text, not {name!r:.60}")
        if not isinstance(operation, str) or operation not in _ROWS:
            raise InvalidData(f"node {name!r:.60}: unknown operation {operation!r:.60}")
        row = _ROWS[operation]
        if not isinstance(inputs, list) or not all(isinstance(each, str) and each for each in inputs):
            raise InvalidData(f"node {name!r:.60}: the inputs must be a list of names")
        if not row.inputs[0] <= len(inputs) <= row.inputs[1]:
            raise InvalidData(f"node {name!r:.60}: {operation} cannot have {len(inputs)} inputs")
        if not isinstance(settings, dict) or set(settings) != set(row.settings):
            raise InvalidData(f"node {name!r:.60}: {operation} takes the settings {', '.join(row.settings)}")
        for key, value in settings.items():
            least, most = row.settings[key]
            if type(value) is not int or not least <= value <= most:
                raise InvalidData(f"node {name!r:.60}: {key} is {value!r:.40}; allowed is {least} to {most}")
        tensors = [f"{name}.{part}" for part in row.tensors]
        if not all(tensor in self.shapes for tensor in tensors):
            raise InvalidData(f"node {name!r:.60}: its tensors {', '.join(tensors)} are not all there")
        made = getattr(self, f"_{operation}")(name, inputs, tensors, settings)
        if settings.get("relu"):
            made.append(node("Relu", [f"{name}/{len(made)}"], ""))
        for at, each in enumerate(made, start=1):
            output = name if at == len(made) else f"{name}/{at}"
            self.nodes.append(Node(each.operation, each.inputs, (output,), each.settings))
        self.last = name

    def _constant(self, name: str, values: Any, dtype: type = np.int64) -> str:
        self.constants[name] = np.array(values, dtype)
        return name

    def _conv2d(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        edges = s["padding_h"], s["padding_w"]
        strides = s["stride_h"], s["stride_w"]
        conv = node("Conv", [inputs[0], *tensors], "", strides=strides, pads=edges * 2)
        return [conv, node("Add", [f"{name}/1", inputs[1]], "")] if len(inputs) > 1 else [conv]

    def _linear(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        return [node("Gemm", [*inputs, *tensors], "", transB=1)]

    def _affine(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        """As a batch norm of mean 0 and variance 1."""
        shape = self.shapes[tensors[0]]
        if count(shape) > 2**20:
            raise InvalidData(f"node {name!r:.60}: {shape} is too large")
        zeros = self._constant(f"{name}.mean", np.zeros(shape), np.float32)
        ones = self._constant(f"{name}.variance", np.ones(shape), np.float32)
        return [node("BatchNormalization", [*inputs, *tensors, zeros, ones], "", epsilon=0)]

    def _add(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        return [node("Add", inputs, "")]

    def _relu(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        return [node("Relu", inputs, "")]

    def _pool(self, operation: str, inputs: list[str], s: Mapping[str, int], **more: int) -> list[Node]:
        window = {
            "kernel_shape": (s["kernel"],) * 2,
            "strides": (s["stride"],) * 2,
            "pads": (s["padding"],) * 4,
        }
        return [node(operation, inputs, "", **window, **more)]

    def _max_pool(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        return self._pool("MaxPool", inputs, s, ceil_mode=s["ceil"])

    def _average_pool(
        self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]
    ) -> list[Node]:
        return self._pool("AveragePool", inputs, s, count_include_pad=1)

    def _adaptive_average_pool(
        self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]
    ) -> list[Node]:
        return [node("AdaptiveAveragePool", inputs, "", sizes=(s["size"],) * 2)]

    def _concatenate(
        self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]
    ) -> list[Node]:
        return [node("Concat", inputs, "", axis=1)]

    def _subsample(
        self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]
    ) -> list[Node]:
        """Every stride-th pixel, and channels of zeros behind the others."""
        lists = {"starts": [0, 0], "ends": [2**31, 2**31], "axes": [2, 3], "steps": [s["stride"]] * 2}
        names = [self._constant(f"{name}.{key}", values) for key, values in lists.items()]
        pads = self._constant(f"{name}.pads", [0, 0, 0, 0, 0, s["new_channels"], 0, 0])
        return [node("Slice", [*inputs, *names], ""), node("Pad", [f"{name}/1", pads], "")]

    def _flatten(self, name: str, inputs: list[str], tensors: list[str], s: Mapping[str, int]) -> list[Node]:
        return [node("Flatten", inputs, "")]
