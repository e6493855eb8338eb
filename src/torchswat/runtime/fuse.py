"""What a session runs in one step: convolutions and products with what follows them, of constant weights.

    x -> [Pad with zeros] -> Conv -> [Mul, Add constant] -> [Add residual] -> [activation]     FusedConv
    x -> MatMul or Gemm -> [Mul, Add constant] -> [Add residual] -> [activation]               FusedLinear
    x -> BatchNormalization -> [Relu]                                                          FusedAffine
    x -> Sigmoid -> Mul with x                                                                 Swish

These rows are in no file: a file holds the plain operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from torchswat.runtime import fuse_quantized
from torchswat.runtime.activations import NAMES, activation_of, following
from torchswat.runtime.graph import Graph, Node
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.norms import batch_scale
from torchswat.runtime.operations.products import product_shape
from torchswat.runtime.operations.rows import (
    FLOAT,
    Operation,
    Settings,
    Value,
    axis_of,
    broadcast_shape,
    choice,
    flag,
    real,
)

Array = np.ndarray
Tensors = dict[str, np.ndarray]


def _conv_row(settings: Settings) -> Operation:
    return OPERATIONS["ConvTranspose" if settings["transposed"] else "Conv"]


def _conv_rule(settings: Settings, x: Value, w: Value, b: Value, residual: Value | None = None) -> Value:
    made = _conv_row(settings).rule(settings, x, w, b)
    assert isinstance(made, Value)
    return made if residual is None else Value(broadcast_shape(made.shape, residual.shape), FLOAT)


def _conv(settings: Settings, x: Array, w: Array, b: Array, residual: Array | None = None) -> Array:
    y = _conv_row(settings).body(settings, x, w, b)
    return _ended(settings, y if residual is None else y + residual)


def _ended(settings: Settings, y: Array) -> Array:
    return following(settings)(y)


def _linear_rule(settings: Settings, x: Value, w: Value, b: Value, residual: Value | None = None) -> Value:
    made = product_shape(x.shape, w.shape[::-1])
    return Value(made if residual is None else broadcast_shape(made, residual.shape), FLOAT)


def _linear(settings: Settings, x: Array, w: Array, b: Array, residual: Array | None = None) -> Array:
    y = x @ w.T
    y += b
    return _ended(settings, y if residual is None else y + residual)


def _affine(settings: Settings, x: Array, scale: Array, shift: Array) -> Array:
    sizes = -1, *(1,) * (x.ndim - 2)
    y = x * scale.reshape(sizes)
    y += shift.reshape(sizes)
    return np.maximum(y, 0, out=y) if settings["relu"] else y


_TRANSPOSED = OPERATIONS["ConvTranspose"].settings
_FOLLOWING = {"relu": flag(), "after": choice(*NAMES), "low": real(0.0), "high": real(0.0)}
_NOTHING = {"relu": 0, "after": "none", "low": 0.0, "high": 0.0}

TABLE: Mapping[str, Operation] = {
    **OPERATIONS,
    "FusedConv": Operation(_conv_rule, _conv, (3, 4), {**_TRANSPOSED, "transposed": flag(), **_FOLLOWING}),
    "FusedLinear": Operation(_linear_rule, _linear, (3, 4), _FOLLOWING),
    **fuse_quantized.ROWS,
    "FusedAffine": Operation(
        lambda settings, x, *others: Value(x.shape, FLOAT), _affine, (3, 3), {"relu": flag()}
    ),
}
"""Rows of a file's operations and of the fused ones."""

_PRODUCTS = ("FusedConv", "FusedLinear")
_FUSED = (*_PRODUCTS, "FusedAffine")


def fuse(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors]:
    """Return a graph of fused operations, for a session alone, and its tensors."""
    return _Fuser(*fuse_quantized.fuse_quantized(graph, tensors)).run()


class _Fuser:
    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self.graph, self.tensors, self.read = graph, dict(tensors), graph.readers()
        self.nodes: dict[str, Node] = {}  # by the name of the result, in order

    def run(self) -> tuple[Graph, Tensors]:
        for each in self.graph.nodes:
            body = getattr(self, f"_{each.operation.lower()}", None)
            if body is None and each.operation in NAMES:
                body = self._activation
            made = body(each) if body is not None and len(each.outputs) == 1 else None
            self.nodes[each.name] = made or each
        graph = replace(self.graph, nodes=tuple(self.nodes.values()))
        used = graph.readers()
        return graph, {name: tensor for name, tensor in self.tensors.items() if used[name]}

    # ---- what begins a chain

    def _conv(self, each: Node, transposed: int = 0) -> Node | None:
        source, name = each.inputs[:2]
        weight, channels = self.tensors.get(name), 0
        if weight is not None:
            channels = weight.shape[1] * each.settings["group"] if transposed else len(weight)
        bias = each.inputs[2] if len(each.inputs) > 2 else ""
        if weight is None or (bias and bias not in self.tensors):
            return None
        bias = bias or self._keep(f"{each.name}.bias", np.zeros(channels, np.float32))
        settings = {"output_padding": (0,) * (weight.ndim - 2), **each.settings}
        settings |= {"transposed": transposed, **_NOTHING}
        pads = None if transposed else self._zeros_around(source, settings)
        if pads is not None:
            source, settings = self.nodes.pop(source).inputs[0], {**settings, "pads": pads}
        return Node("FusedConv", (source, name, bias), each.outputs, settings)

    def _zeros_around(self, name: str, settings: Settings) -> tuple[int, ...] | None:
        """Return the padding of a convolution together with that of the Pad before it, which nothing else reads."""
        pad = self.nodes.get(name)
        if pad is None or pad.operation != "Pad" or self.read[name] != 1 or settings["auto_pad"] != "none":
            return None
        ends, value, axes = (  # known, or left out
            self.tensors.get(pad.inputs[at]) if pad.inputs[at:] and pad.inputs[at] else None
            for at in (1, 2, 3)
        )
        unknown = any(each and each not in self.tensors for each in pad.inputs[1:])
        if (
            unknown
            or ends is None
            or pad.settings["mode"] != "constant"
            or (value is not None and value.any())
        ):
            return None
        own, rank = settings["pads"], len(settings["pads"]) // 2 + 2
        named = range(rank) if axes is None else [axis_of(int(axis), rank) for axis in axes.reshape(-1)]
        both = np.zeros((2, rank), np.int64)
        both[:, [*named]] = ends.reshape(2, -1)
        if both[:, :2].any() or (both < 0).any():
            return None
        together = both[:, 2:].reshape(-1) + np.asarray(own)
        return tuple(together.tolist())

    def _convtranspose(self, each: Node) -> Node | None:
        return self._conv(each, 1)

    def _matmul(self, each: Node) -> Node | None:
        weight = self.tensors.get(each.inputs[1])
        if weight is None or weight.ndim != 2 or weight.dtype != FLOAT:
            return None
        return self._product(each, weight.T, np.zeros(weight.shape[1], np.float32))

    def _gemm(self, each: Node) -> Node | None:
        weight, settings = self.tensors.get(each.inputs[1]), each.settings
        bias = self.tensors.get(each.inputs[2]) if len(each.inputs) > 2 else np.zeros(1, np.float32)
        if weight is None or bias is None or settings["transA"]:
            return None
        weight = weight if settings["transB"] else weight.T
        if bias.size not in (1, len(weight)) or bias.shape[-1:] not in ((), (1,), (len(weight),)):
            return None
        bias = np.broadcast_to(bias.reshape(-1), len(weight)) * np.float32(settings["beta"])
        return self._product(each, weight * np.float32(settings["alpha"]), bias)

    def _product(self, each: Node, weight: Array, bias: Array) -> Node:
        names = (
            self._keep(f"{each.name}.weight", np.ascontiguousarray(weight)),
            self._keep(f"{each.name}.bias", np.ascontiguousarray(bias)),
        )
        return Node("FusedLinear", (each.inputs[0], *names), each.outputs, _NOTHING)

    def _batchnormalization(self, each: Node) -> Node | None:
        if not all(name in self.tensors for name in each.inputs[1:]):
            return None
        values = batch_scale(each.settings, *(self.tensors[name] for name in each.inputs[1:]))
        names = [
            self._keep(f"{each.name}.{part}", value.astype(np.float32))
            for part, value in zip(("scale", "shift"), values, strict=True)
        ]
        return Node("FusedAffine", (each.inputs[0], *names), each.outputs, {"relu": 0})

    def _keep(self, name: str, tensor: Array) -> str:
        while name in self.tensors or self.read[name]:
            name += "'"
        self.tensors[name] = tensor
        return name

    # ---- what is taken in

    def _alone(self, name: str, kinds: tuple[str, ...] = _FUSED) -> Node | None:
        """Return the fused node that made `name`, if nothing else reads it and no activation ends it."""
        made = self.nodes.get(name)
        if made is None or made.operation not in kinds or self.read[name] != 1 or made.settings["relu"]:
            return None
        return made if made.settings.get("after", "none") == "none" else None

    def _instead(self, made: Node, each: Node, **changes: Any) -> Node:
        """Put a changed `made` in the place of `each`, where all that it reads is there."""
        del self.nodes[made.name]
        return replace(made, outputs=each.outputs, **changes)

    def _relu(self, each: Node) -> Node | None:
        made = self._alone(each.inputs[0])
        return made and self._instead(made, each, settings={**made.settings, "relu": 1})

    def _activation(self, each: Node) -> Node | None:
        made, found = self._alone(each.inputs[0], _PRODUCTS), activation_of(each, self.tensors.get)
        if made is None or found is None:
            return None
        ending = {"after": found.name, "low": found.low, "high": found.high}
        return self._instead(made, each, settings={**made.settings, **ending})

    def _add(self, each: Node) -> Node | None:
        for name, other in (each.inputs, each.inputs[::-1]):
            made = self._alone(name, _PRODUCTS)
            if made is None or made.inputs[3:]:
                continue
            values = self._by_channel(made, other)
            if values is not None:
                bias = self._keep(f"{each.name}.bias", self.tensors[made.inputs[2]] + values)
                return self._instead(made, each, inputs=(*made.inputs[:2], bias))
            if other not in self.tensors and other != name:
                return self._instead(made, each, inputs=(*made.inputs, other))
        return None

    def _swish_of(self, each: Node) -> Node | None:
        """Return x * Sigmoid(x) as one activation, of the product before it where there is one."""
        for x, gate in (each.inputs, each.inputs[::-1]):
            made = self.nodes.get(gate)
            if (
                made is not None
                and made.operation == "Sigmoid"
                and made.inputs[0] == x
                and self.read[gate] == 1
            ):
                del self.nodes[gate]
                self.read[x] -= 1
                swish = Node("Swish", (x,), each.outputs, {})
                return self._activation(swish) or swish
        return None

    def _mul(self, each: Node) -> Node | None:
        swish = self._swish_of(each)
        if swish is not None:
            return swish
        for name, other in (each.inputs, each.inputs[::-1]):
            made = self._alone(name, _PRODUCTS)
            if made is None or made.inputs[3:] or made.settings.get("transposed"):
                continue
            values = self._by_channel(made, other)
            if values is not None:
                weight, bias = (self.tensors[name] for name in made.inputs[1:])
                factor = values.reshape(-1, *(1,) * (weight.ndim - 1))
                names = (
                    self._keep(f"{each.name}.weight", weight * factor),
                    self._keep(f"{each.name}.bias", bias * values),
                )
                return self._instead(made, each, inputs=(made.inputs[0], *names))
        return None

    def _by_channel(self, made: Node, name: str) -> Array | None:
        """Return a constant with a number for each channel of the result of `made`."""
        values = self.tensors.get(name)
        channels = len(self.tensors[made.inputs[2]])
        if values is None or values.dtype != FLOAT or values.size not in (1, channels):
            return None
        if made.operation == "FusedLinear":
            # (1, 1, K) fits where the product has as many axes; one number more would add an axis.
            return np.broadcast_to(values.reshape(-1), channels) if values.ndim <= 1 else None
        rank = self.tensors[made.inputs[1]].ndim
        shape = (1,) * (rank - values.ndim) + values.shape
        fits = values.ndim <= rank and shape[1] == values.size
        return np.broadcast_to(values.reshape(-1), channels) if fits else None
