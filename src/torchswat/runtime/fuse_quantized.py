"""Convolutions of 8-bit numbers in a graph, with what follows them, as one node each.

    DequantizeLinear(bytes)  \\
    DequantizeLinear(weight) -> Conv -> [Add DequantizeLinear(bytes)] -> [Relu] -> [QuantizeLinear]
                             = QuantizedConv, from fours to fours or to float32

    DequantizeLinear(bytes) -> MaxPool -> QuantizeLinear, of the same scale and zero point = MaxPoolFours

This is how ONNX writes a quantized network, and how a file holds it. What is computed is the same up to rounding:
sums are whole numbers here, and a result is rounded to a byte once. The new rows are in no file; activations
between them lie in fours (`torchswat.runtime.fours`), whose bytes are unsigned: of int8, 128 is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchswat.runtime.fours import FOUR, from_fours, groups, to_fours
from torchswat.runtime.graph import Graph, Node
from torchswat.runtime.infer import compute, constant, infer
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.rows import (
    FLOAT,
    Operation,
    Settings,
    Shape,
    Value,
    flag,
    floats,
    real,
    whole,
)
from torchswat.runtime.operations.windows import padded, pads_of

Array = np.ndarray
Tensors = dict[str, np.ndarray]

BYTE = np.dtype(np.uint8)
LARGEST_SUM = 2**31  # of a filter, that int32 must hold
LARGEST_NUMBER = 1e9  # that is rounded to a whole number

# ---- the rows ----------------------------------------------------------------------------------------------

_ZERO = whole(0, 0, 255)
_SCALE = real(1.0, 0)


def shape_of_fours(shape: Shape) -> Shape:
    """Return the shape of fours of bytes (N, C, ...)."""
    n, c, *space = shape
    return (groups(c), *space, n, FOUR)


def _maps_of(fours: Value, channels: int) -> Shape:
    if len(fours.shape) < 3 or fours.shape[-1] != FOUR or fours.shape[0] != groups(channels):
        raise ValueError(f"fours of shape {fours.shape} do not hold {channels} channels")
    return (fours.shape[-2], channels, *fours.shape[1:-2])


def _quantize_rule(settings: Settings, x: Value) -> Value:
    floats(x)
    return Value(shape_of_fours(x.shape), BYTE)


def _quantize(settings: Settings, x: Array) -> Array:
    y = np.rint(x / np.float32(settings["scale"])) + np.float32(settings["zero"])
    return to_fours(np.clip(np.fmax(y, 0), 0, 255).astype(np.uint8))


def _dequantize_rule(settings: Settings, x: Value) -> Value:
    return Value(_maps_of(x, settings["channels"]), FLOAT)


def _dequantize(settings: Settings, x: Array) -> Array:
    bytes_ = from_fours(x, settings["channels"])
    return (bytes_.astype(np.float32) - np.float32(settings["zero"])) * np.float32(settings["scale"])


def _conv_rule(
    settings: Settings,
    x: Value,
    w: Value,
    start: Value,
    factor: Value,
    shift: Value,
    residual: Value | None = None,
) -> Value:
    maps = Value(_maps_of(x, w.shape[1]), FLOAT)
    made = OPERATIONS["Conv"].rule(settings, maps, Value(w.shape, FLOAT), None)
    assert isinstance(made, Value)
    fours = Value(shape_of_fours(made.shape), BYTE)
    if residual is not None and residual.shape != fours.shape:
        raise ValueError(f"a sum of {residual.shape} does not fit a result of {fours.shape}")
    return made if settings["is_float"] else fours


def _conv(
    settings: Settings,
    x: Array,
    w: Array,
    start: Array,
    factor: Array,
    shift: Array,
    residual: Array | None = None,
) -> Array:
    channels = (-1, *(1,) * (w.ndim - 2))
    y = _sums(settings, from_fours(x, w.shape[1]), w) + start.reshape(channels)
    y = y.astype(np.float32) * factor.reshape(channels) + shift.reshape(channels)
    if residual is not None:
        y += from_fours(residual, len(w)).astype(np.float32) * np.float32(settings["residual_factor"])
    if settings["relu"]:
        y = np.maximum(y, 0)
    if settings["is_float"]:
        return y
    return to_fours(np.clip(np.rint(y) + np.float32(settings["zero"]), 0, 255).astype(np.uint8))


def _sums(settings: Settings, x: Array, w: Array) -> Array:
    """Return the convolution of whole numbers, in float64, which holds them all."""
    kernel, strides, steps = w.shape[2:], settings["strides"], settings["dilations"]
    x = padded(x, pads_of(settings, x.shape[2:], kernel), settings["outside"]).astype(np.float64)
    sizes = [
        (size - (width - 1) * step - 1) // stride + 1
        for size, width, stride, step in zip(x.shape[2:], kernel, strides, steps, strict=True)
    ]
    y = np.zeros((len(x), len(w), *sizes))
    for place in np.ndindex(*kernel):
        rows = zip(place, strides, steps, sizes, strict=True)
        seen = x[(..., *(slice(p * d, p * d + s * (m - 1) + 1, s) for p, s, d, m in rows))]
        of_tap = w[(..., *place)].astype(np.float64)
        y += np.matmul(of_tap, seen.reshape(*seen.shape[:2], -1)).reshape(y.shape)
    return y


def _pool_rule(settings: Settings, x: Value) -> Value:
    maps = Value(_maps_of(x, x.shape[0] * FOUR), FLOAT)
    made = OPERATIONS["MaxPool"].rule(settings, maps)
    assert isinstance(made, Value)
    return Value(shape_of_fours(made.shape), BYTE)


def _pool(settings: Settings, x: Array) -> Array:
    maps = from_fours(x, len(x) * FOUR).astype(np.float32)
    return to_fours(np.maximum(OPERATIONS["MaxPool"].body(settings, maps), 0).astype(np.uint8))


ROWS: Mapping[str, Operation] = {
    "MaxPoolFours": Operation(_pool_rule, _pool, (1, 1), OPERATIONS["MaxPool"].settings),
    "QuantizeFours": Operation(_quantize_rule, _quantize, (1, 1), {"scale": _SCALE, "zero": _ZERO}),
    "DequantizeFours": Operation(
        _dequantize_rule,
        _dequantize,
        (1, 1),
        {"scale": _SCALE, "zero": _ZERO, "channels": whole(1, 1, 2**20)},
    ),
    "QuantizedConv": Operation(
        _conv_rule,
        _conv,
        (5, 6),
        {
            **OPERATIONS["Conv"].settings,
            "outside": _ZERO,
            "zero": _ZERO,
            "residual_factor": real(0.0),
            "relu": flag(),
            "is_float": flag(),
        },
    ),
}
"""``QuantizedConv``: bytes, weight (int8), what sums start with (int32), factor, shift [, bytes to add]."""

# ---- from a graph ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """The scale and the zero point, of unsigned bytes, of a whole tensor."""

    scale: float
    zero: int


def fuse_quantized(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Return a graph with convolutions of 8-bit numbers, for a session alone, and its tensors."""
    if not any(each.operation == "DequantizeLinear" for each in graph.nodes):
        return graph, tensors
    return _Fuser(graph, tensors).run()


class _Fuser:
    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self.graph, self.tensors = graph, dict(tensors)
        self.makers = {each.name: each for each in graph.nodes}
        self.read: dict[str, list[Node]] = {}
        for each in graph.nodes:
            for name in filter(None, each.inputs):
                self.read.setdefault(name, []).append(each)
        known = {name: constant(tensor) for name, tensor in tensors.items()}
        self.values = infer(graph, known, graph.examples)
        self.fours: set[str] = set()  # names of bytes that lie in fours
        self.gone: set[str] = set()  # nodes that others have taken in

    def run(self) -> tuple[Graph, Tensors]:
        made: dict[str, Node] = {}  # by the last node of a chain
        for each in self.graph.nodes:
            found = None
            if each.operation == "Conv":
                found = self._chain(each)
            elif each.operation == "MaxPool" and len(each.outputs) == 1:
                found = self._pool(each)
            if found is not None:
                made[found.name] = found
        nodes = [each for each in (self._kept(each, made) for each in self.graph.nodes) if each is not None]
        return self._without_unread(nodes)

    # ---- what a name stands for

    def _alone(self, name: str) -> Node | None:
        """Return the one node that reads a name, if nothing else does."""
        readers = self.read.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def _steps(self, node: Node | None, operation: str) -> _Steps | None:
        """Return how a node makes bytes of a tensor as a whole, or a tensor of bytes."""
        if node is None or node.operation != operation or not all(n in self.tensors for n in node.inputs[1:]):
            return None
        scale = self.tensors[node.inputs[1]]
        dtype = self.values[node.name if operation == "QuantizeLinear" else node.inputs[0]].dtype
        zero = self.tensors[node.inputs[2]] if node.inputs[2:] else np.zeros(1, dtype)
        if (
            scale.size != 1
            or zero.dtype not in (np.uint8, np.int8)
            or not 0 < float(scale.reshape(())) < 1e30
        ):
            return None
        shift = 128 if zero.dtype == np.int8 else 0
        return _Steps(float(scale.reshape(())), int(zero.reshape(())) + shift)

    def _may_be_fours(self, name: str) -> bool:
        """Return whether bytes of maps are made in the graph, and read by what takes fours alone."""
        readers = self.read.get(name, [])
        return (
            self._steps(self.makers.get(name), "QuantizeLinear") is not None
            and len(self.values[name].shape) == 4
            and name not in self.graph.outputs
            and all(self._steps(each, "DequantizeLinear") for each in readers)
        )

    def _bytes(self, name: str) -> tuple[str, _Steps] | None:
        """Return the bytes that a tensor is made of, and their steps."""
        node = self.makers.get(name)
        steps = self._steps(node, "DequantizeLinear")
        if node is None or steps is None or not self._may_be_fours(node.inputs[0]):
            return None
        return node.inputs[0], steps

    def _weight(self, name: str) -> tuple[Array, Array] | None:
        """Return a weight (K, C, R, S) of int8, and a scale for each filter."""
        node = self.makers.get(name)
        if (
            node is None
            or node.operation != "DequantizeLinear"
            or not all(n in self.tensors for n in node.inputs)
        ):
            return None
        weight, scale, *zero = (self.tensors[n] for n in node.inputs)
        if weight.dtype != np.int8 or weight.ndim != 4 or (zero and zero[0].any()):
            return None
        if scale.size != 1 and node.settings["axis"] not in (0, -4):
            return None
        return weight, np.broadcast_to(scale.reshape(-1), len(weight))

    # ---- a convolution and what follows it

    def _chain(self, conv: Node) -> Node | None:
        source, weighted = self._bytes(conv.inputs[0]), self._weight(conv.inputs[1])
        bias = self.tensors.get(conv.inputs[2]) if conv.inputs[2:] else np.zeros(1, np.float32)
        settings = conv.settings
        rank = len(settings["pads"]) // 2
        if source is None or weighted is None or bias is None or settings["group"] != 1:
            return None
        if settings["auto_pad"] != "none" or settings["pads"][:rank] != settings["pads"][rank:]:
            return None
        (name, steps), (weight, scale) = source, weighted
        last, taken, residual, relu = conv, [conv], None, 0
        follower = self._alone(last.name)
        if follower is not None and follower.operation == "Add":
            residual = self._residual(follower, last.name)
            if residual is not None:
                taken.append(last := follower)
                follower = self._alone(last.name)
        if follower is not None and follower.operation == "Relu":
            taken.append(last := follower)
            relu, follower = 1, self._alone(last.name)
        made = self._steps(follower, "QuantizeLinear")
        if follower is None or not self._may_be_fours(follower.name):
            made = None
        if made is not None and follower is not None:
            taken.append(last := follower)
        target = made or _Steps(1.0, 0)
        numbers = _numbers(weight, scale, bias, steps, residual[1] if residual else None, target)
        if numbers is None:
            return None
        start, factor, shift, residual_factor = numbers
        inputs = [
            name,
            *(
                self._keep(f"{last.name}.{part}", tensor)
                for part, tensor in (
                    ("weight", weight),
                    ("start", start),
                    ("factor", factor),
                    ("shift", shift),
                )
            ),
        ]
        self.fours.add(name)
        if residual is not None:
            inputs.append(residual[0])
            self.fours.add(residual[0])
        if made is not None:
            self.fours.add(last.name)
        self.gone |= {each.name for each in taken}
        more: dict[str, Any] = {
            "outside": steps.zero,
            "zero": target.zero,
            "residual_factor": residual_factor,
        }
        more |= {"relu": relu, "is_float": int(made is None)}
        return Node("QuantizedConv", tuple(inputs), last.outputs, {**settings, **more})

    def _pool(self, pool: Node) -> Node | None:
        source, follower = self._bytes(pool.inputs[0]), self._alone(pool.name)
        made = self._steps(follower, "QuantizeLinear")
        if source is None or follower is None or made != source[1] or not self._may_be_fours(follower.name):
            return None
        self.fours |= {source[0], follower.name}
        self.gone |= {pool.name, follower.name}
        return Node("MaxPoolFours", source[:1], follower.outputs, pool.settings)

    def _residual(self, add: Node, name: str) -> tuple[str, _Steps] | None:
        others = [each for each in add.inputs if each != name]
        if len(others) != 1 or self.values[others[0]].shape != self.values[name].shape:
            return None
        return self._bytes(others[0])

    def _keep(self, name: str, tensor: Array) -> str:
        while name in self.tensors or name in self.values:
            name += "'"
        self.tensors[name] = tensor
        return name

    # ---- everything else

    def _kept(self, node: Node, made: dict[str, Node]) -> Node | None:
        if node.name in made:
            return made[node.name]
        if node.name in self.gone:
            return None
        if node.operation == "QuantizeLinear" and node.name in self.fours:
            steps = self._steps(node, "QuantizeLinear")
            assert steps is not None
            return Node("QuantizeFours", node.inputs[:1], node.outputs, vars(steps))
        if node.operation == "DequantizeLinear":
            if node.inputs[0] in self.fours:
                steps = self._steps(node, "DequantizeLinear")
                assert steps is not None
                more = {"channels": self.values[node.name].shape[1]}
                return Node("DequantizeFours", node.inputs[:1], node.outputs, {**vars(steps), **more})
            if all(name in self.tensors for name in node.inputs):
                sources: list[Array | None] = [self.tensors[name] for name in node.inputs]
                (self.tensors[node.name],) = compute(node, OPERATIONS[node.operation], sources)
                return None
        return node

    def _without_unread(self, nodes: list[Node]) -> tuple[Graph, Tensors]:
        wanted, kept = set(self.graph.outputs), list[Node]()
        for each in reversed(nodes):
            if wanted & set(each.outputs):
                kept.append(each)
                wanted.update(each.inputs)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in wanted}
        return replace(self.graph, nodes=tuple(reversed(kept))), tensors


def _numbers(
    weight: Array, scale: Array, bias: Array, source: _Steps, residual: _Steps | None, target: _Steps
) -> tuple[Array, Array, Array, float] | None:
    """Return what sums start with, factor, shift and the factor of what is added; None where they do not fit."""
    whole = weight.astype(np.int64).reshape(len(weight), -1)
    start = -source.zero * whole.sum(1)
    largest = 255 * np.abs(whole).sum(1) + np.abs(start)
    added = residual or _Steps(0.0, 0)
    with np.errstate(all="ignore"):  # what is not finite does not fit
        factor = (scale.astype(np.float64) * source.scale / target.scale).astype(np.float32)
        shift = ((bias.astype(np.float64) - added.zero * added.scale) / target.scale).astype(np.float32)
        shift = np.ascontiguousarray(np.broadcast_to(shift, len(weight)))
        by = np.float64(added.scale / target.scale).astype(np.float32)
        number = np.abs(factor) * largest + np.abs(shift) + 255 * by
    fits = (largest < LARGEST_SUM).all() and (number < LARGEST_NUMBER).all()  # a NaN is not below
    return (start.astype(np.int32), factor, shift, float(by)) if fits else None
