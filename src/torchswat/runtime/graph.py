"""A network for inference as data: operations in the order in which they run, and the shapes they make.

Batch norm is folded into the convolution before it, and ReLU and the sum of a residual into whatever makes
their input, so that few kinds of operations remain. Each is a row of `OPERATIONS`: how many inputs it takes,
which settings, which tensors of which shape, and what shape comes out. A graph that was read from a file is
checked against that table, number by number, before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torchswat.errors import InvalidData
from torchswat.runtime.container import is_sizes

INPUT = "input"
LARGEST = 2**26  # entries of an activation of one sample
MOST_NODES = 10_000

Shape = tuple[int, ...]
"""Of one sample: (C, H, W), or (C,) behind the flattening."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    name : str
        Of its result, and the beginning of the names of its tensors.
    operation : str
        One of `OPERATIONS`.
    inputs : tuple of str
        Names of results, or ``"input"``.
    settings : dict
        Whole numbers, and ``relu`` where that follows.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    settings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network: its nodes, each behind those that it reads, the last of which is the output.

    Examples
    --------
    >>> graph = Graph((1, 8, 8), (Node("flat", "flatten", ("input",)),))
    >>> graph.shapes({})
    {'input': (1, 8, 8), 'flat': (64,)}
    """

    input_shape: Shape
    nodes: tuple[Node, ...]

    def shapes(self, tensors: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shape of every result, from the shapes of the tensors.

        Raises
        ------
        InvalidData
            Something does not fit: the message names the node.
        """
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        used: set[str] = set()
        for node in self.nodes:
            row = OPERATIONS[node.operation]
            try:
                missing = [name for name in node.inputs if name not in shapes]
                if missing:
                    raise ValueError(f"there is no {missing[0]!r:.60} before it")
                if node.name in shapes:
                    raise ValueError("the name is taken")
                names = [f"{node.name}.{part}" for part in row.tensors]
                if not all(name in tensors for name in names):
                    raise ValueError(f"its tensors {', '.join(names)} are not all there")
                inputs = [shapes[name] for name in node.inputs]
                if len(inputs) > 1 and row.maps and any(len(shape) != 3 for shape in inputs):
                    raise ValueError("it works on maps (C, H, W)")
                shape = row.shape(node.settings, inputs, [tensors[name] for name in names])
                if not all(size > 0 for size in shape) or _count(shape) > LARGEST:
                    raise ValueError(f"its result would be of shape {shape}")
            except ValueError as error:
                raise InvalidData(f"node {node.name!r:.60} ({node.operation}): {error}") from None
            used.update(names)
            shapes[node.name] = shape
        unused = sorted(set(tensors) - used)
        if unused:
            raise InvalidData(f"no node uses the tensor {unused[0]!r:.60}")
        return shapes

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        nodes = [{**asdict(node), "inputs": list(node.inputs)} for node in self.nodes]
        return {"input_shape": list(self.input_shape), "nodes": nodes}

    @classmethod
    def from_json(cls, values: Any) -> Graph:
        """Check plain values and make a graph of them.

        Raises
        ------
        InvalidData
            They are not what `to_json` returns.
        """
        if not isinstance(values, dict) or set(values) != {"input_shape", "nodes"}:
            raise InvalidData(f"a network is an input_shape and nodes, not {values!r:.80}")
        shape, nodes = values["input_shape"], values["nodes"]
        if not is_sizes(shape) or len(shape) != 3 or not 0 < _count(shape) <= LARGEST:
            raise InvalidData(f"the input_shape must be [channels, height, width], not {shape!r:.80}")
        if not isinstance(nodes, list) or not 0 < len(nodes) <= MOST_NODES:
            raise InvalidData(f"a network needs a list of 1 to {MOST_NODES} nodes")
        return cls(tuple(shape), tuple(map(_node, nodes)))


def _node(values: Any) -> Node:
    if not isinstance(values, dict) or set(values) != {"name", "operation", "inputs", "settings"}:
        raise InvalidData(f"a node is a name, operation, inputs and settings, not {values!r:.80}")
    name, operation, inputs, settings = (values[k] for k in ("name", "operation", "inputs", "settings"))
    if not isinstance(name, str) or not name:
        raise InvalidData(f"the name of a node must be text, not {name!r:.60}")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise InvalidData(f"node {name!r:.60}: unknown operation {operation!r:.60}")
    row = OPERATIONS[operation]
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise InvalidData(f"node {name!r:.60}: the inputs must be a list of names")
    if not row.least_inputs <= len(inputs) <= row.most_inputs:
        raise InvalidData(f"node {name!r:.60}: {operation} cannot have {len(inputs)} inputs")
    if not isinstance(settings, dict) or set(settings) != set(row.settings):
        raise InvalidData(
            f"node {name!r:.60}: {operation} takes the settings {', '.join(row.settings) or 'none'}"
        )
    for key, value in settings.items():
        least, most = row.settings[key]
        if type(value) is not int or not least <= value <= most:
            raise InvalidData(f"node {name!r:.60}: {key} is {value!r:.40}; allowed is {least} to {most}")
    return Node(name, operation, tuple(inputs), settings)


# ---- the table of operations -------------------------------------------------------------------------------

Rule = Callable[[Mapping[str, int], list[Shape], list[Shape]], Shape]
"""From settings, shapes of the inputs and shapes of the tensors to the shape of the result, or ValueError."""


@dataclass(frozen=True)
class Operation:
    """What one kind of node is made of; settings with the range that is allowed."""

    shape: Rule
    settings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    least_inputs: int = 1
    most_inputs: int = 1
    maps: bool = True


def _count(shape: Any) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _window(size: int, kernel: int, stride: int, padding: int, ceil: int = 0) -> int:
    """Return how many windows fit, as torch counts them: with `ceil` none that begins in the far padding."""
    if size + 2 * padding < kernel:
        raise ValueError(f"a kernel of {kernel} does not fit {size} pixels with {padding} around")
    count = (size + 2 * padding - kernel + (stride - 1) * ceil) // stride + 1
    return count - (ceil and (count - 1) * stride >= size + padding)


def _conv2d(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    channels, height, width = _maps(inputs[0])
    weight, bias = tensors
    if len(weight) != 4 or weight[1] != channels or bias != weight[:1]:
        raise ValueError(f"the weight {weight} and the bias {bias} do not fit {channels} channels")
    shape = (
        weight[0],
        _window(height, weight[2], settings["stride_h"], settings["padding_h"]),
        _window(width, weight[3], settings["stride_w"], settings["padding_w"]),
    )
    if len(inputs) > 1 and inputs[1] != shape:
        raise ValueError(f"the residual {inputs[1]} does not fit the result {shape}")
    return shape


def _linear(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    weight, bias = tensors
    if len(inputs[0]) != 1 or weight[1:] != inputs[0] or bias != weight[:1]:
        raise ValueError(f"the weight {weight} and the bias {bias} do not fit the input {inputs[0]}")
    return bias


def _affine(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    shape = _maps(inputs[0])
    if any(tensor != shape[:1] for tensor in tensors):
        raise ValueError(f"scale and shift {tensors} do not fit {shape[0]} channels")
    return shape


def _add(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    if inputs[0] != inputs[1]:
        raise ValueError(f"{inputs[0]} and {inputs[1]} cannot be added")
    return inputs[0]


def _relu(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    return inputs[0]


def _pool(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    channels, height, width = _maps(inputs[0])
    kernel, stride, padding = settings["kernel"], settings["stride"], settings["padding"]
    if 2 * padding > kernel:
        raise ValueError(f"a padding of {padding} is more than half the kernel of {kernel}")
    ceil = settings.get("ceil", 0)
    return channels, *(_window(size, kernel, stride, padding, ceil) for size in (height, width))


def _adaptive(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    return _maps(inputs[0])[0], settings["size"], settings["size"]


def _concatenate(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    if len({_maps(shape)[1:] for shape in inputs}) != 1:
        raise ValueError(f"maps of {', '.join(map(str, inputs))} cannot be put together")
    return sum(shape[0] for shape in inputs), *inputs[0][1:]


def _subsample(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    channels, height, width = _maps(inputs[0])
    stride = settings["stride"]
    return channels + settings["new_channels"], -(-height // stride), -(-width // stride)


def _flatten(settings: Mapping[str, int], inputs: list[Shape], tensors: list[Shape]) -> Shape:
    return (_count(inputs[0]),)


def _maps(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it works on maps (C, H, W), not on {shape}")
    return shape


_STEP, _EDGE, _BIT = (1, 2**16), (0, 2**16), (0, 1)
_CONVOLUTION = {"stride_h": _STEP, "stride_w": _STEP, "padding_h": _EDGE, "padding_w": _EDGE, "relu": _BIT}
_WINDOW = {"kernel": _STEP, "stride": _STEP, "padding": _EDGE}

OPERATIONS: dict[str, Operation] = {
    "conv2d": Operation(_conv2d, _CONVOLUTION, ("weight", "bias"), most_inputs=2),
    "linear": Operation(_linear, {"relu": _BIT}, ("weight", "bias"), maps=False),
    "affine": Operation(_affine, {"relu": _BIT}, ("scale", "shift")),
    "add": Operation(_add, {"relu": _BIT}, least_inputs=2, most_inputs=2, maps=False),
    "relu": Operation(_relu, maps=False),
    "max_pool": Operation(_pool, {**_WINDOW, "ceil": _BIT}),
    "average_pool": Operation(_pool, _WINDOW),
    "adaptive_average_pool": Operation(_adaptive, {"size": _STEP}),
    "concatenate": Operation(_concatenate, most_inputs=MOST_NODES),
    "subsample": Operation(_subsample, {"stride": _STEP, "new_channels": _EDGE}),
    "flatten": Operation(_flatten, maps=False),
}
"""``conv2d`` and ``add`` take the ReLU last; the second input of ``conv2d`` is added before it. ``subsample``
takes every stride-th pixel and appends channels of zeros."""
