"""A network as an ONNX model with dense weights, for runtimes without sparse kernels.

Most operations are ONNX's own. Those that ONNX lacks, or has only in operator sets that few runtimes implement,
are written with several. Sizes are fixed to the given ones, so that every runtime can prepare for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from torchswat.errors import InvalidValue, MissingDependency
from torchswat.runtime.graph import Node
from torchswat.runtime.infer import constant, infer
from torchswat.runtime.operations.rows import BOOL, FLOAT, WHOLE, Shape, Value
from torchswat.runtime.package import Package

INSTALL = 'pip install "torchswat[export]"'
OPSET, IR_VERSION = 21, 10


def to_onnx(package: Package, shapes: Sequence[Shape]) -> bytes:
    """Return the content of an ONNX file that computes what a package does, for inputs of fixed sizes.

    Parameters
    ----------
    package : Package
        Of a file, or read from a model.
    shapes : sequence of tuple of int
        Of each input. Inputs keep their names; outputs are called ``output_0`` and so on.

    Returns
    -------
    bytes

    Raises
    ------
    MissingDependency
        The package onnx is not installed.
    InvalidValue
        The network does not take these shapes, or an operation cannot be written: the message names it.

    Examples
    --------
    >>> import onnx
    >>> from torchswat.runtime.graph import Graph, Input, node
    >>> from torchswat.runtime.package import About
    >>> graph = Graph((Input("x", ("batch", 4), (1, 4)),), (node("Swish", ["x"], "y"),), ("y",))
    >>> model = onnx.load_from_string(to_onnx(Package(graph, {}, About()), [(2, 4)]))
    >>> [node.op_type for node in model.graph.node][:2]
    ['Sigmoid', 'Mul']
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency(
            f"writing ONNX needs {error.name}, which is not installed: {INSTALL}"
        ) from error
    return _Writer(onnx, package, package.graph.check(shapes)).model().SerializeToString()


class _Writer:
    def __init__(self, onnx: Any, package: Package, shapes: Mapping[str, Shape]) -> None:
        self.onnx, self.package, self.shapes = onnx, package, shapes
        known = {name: constant(tensor) for name, tensor in package.tensors.items()}
        self.values = infer(package.graph, known, shapes)
        self.nodes: list[Any] = []
        self.tensors = dict(package.tensors)
        self.taken = {*self.values}

    def model(self) -> Any:
        """Return the whole model."""
        helper, graph = self.onnx.helper, self.package.graph
        for each in graph.nodes:
            write = _WRITERS.get(each.operation, _same)
            made = write(self, each, self.values[each.inputs[0]])
            if made is not None:
                self.node("Identity", [made], [each.name])
        outputs = [f"output_{at}" for at in range(len(graph.outputs))]
        for name, output in zip(graph.outputs, outputs, strict=True):
            self.node("Identity", [name], [output])
        made = helper.make_graph(
            self.nodes,
            "network",
            [self._info(each.name, self.values[each.name]) for each in graph.inputs],
            [self._info(o, self.values[n]) for n, o in zip(graph.outputs, outputs, strict=True)],
            [self.onnx.numpy_helper.from_array(tensor, name) for name, tensor in self.tensors.items()],
        )
        sets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(made, opset_imports=sets, ir_version=IR_VERSION)

    def _info(self, name: str, value: Value) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, self.type_of(value.dtype), value.shape)

    def type_of(self, dtype: Any) -> int:
        """Return ONNX's number of a type."""
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def name(self, hint: str) -> str:
        """Return a name that is free."""
        while hint in self.taken:
            hint += "'"
        self.taken.add(hint)
        return hint

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Write one node."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, outputs, **attributes))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Write a node in between, and return the name of its result."""
        name = self.name(f"{operator}_{len(self.nodes)}")
        self.node(operator, inputs, [name], **attributes)
        return name

    def number(self, values: Any, dtype: Any) -> str:
        """Return the name of a constant."""
        name = self.name(f"constant_{len(self.tensors)}")
        self.tensors[name] = np.asarray(values, dtype)
        return name


_Write = Callable[[_Writer, Node, Value], "str | None"]
"""Writes a node of which the first input is known; returns the result's name where the node has not yet got it."""

_NAMES = {"coordinates": "coordinate_transformation_mode", "nearest": "nearest_mode"}


def _attributes(each: Node) -> dict[str, Any]:
    """Return the settings as ONNX has them; empty lists and sizes that are found are left out."""
    made = {_NAMES.get(key, key): value for key, value in each.settings.items() if value != ()}
    auto = made.pop("auto_pad", "none")
    if auto != "none":
        made.pop("pads")
        made["auto_pad"] = auto.upper()
    return made


def _same(w: _Writer, each: Node, x: Value) -> None:
    w.node(each.operation, each.inputs, each.outputs, **_attributes(each))


def _cast(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Cast", each.inputs[0], to=w.type_of(each.settings["to"]))


def _quantize(w: _Writer, each: Node, x: Value) -> str:
    given = [name for name in each.inputs if name]
    more = {} if len(given) > 2 else {"output_dtype": w.type_of(each.settings["to"])}
    return w.add("QuantizeLinear", *given, axis=each.settings["axis"], **more)


def _resize(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Resize", each.inputs[0], "", *each.inputs[1:], **_attributes(each))


def _split(w: _Writer, each: Node, x: Value) -> None:
    attributes = _attributes(each)
    if each.inputs[1:] and each.inputs[1]:
        del attributes["num_outputs"]
    w.node("Split", each.inputs, each.outputs, **attributes)


def _mod(w: _Writer, each: Node, x: Value) -> str:
    if x.dtype != FLOAT:
        return w.add("Mod", *each.inputs)
    whole = w.add("Floor", w.add("Div", *each.inputs))
    return w.add("Sub", each.inputs[0], w.add("Mul", whole, each.inputs[1]))


def _swish(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Mul", each.inputs[0], w.add("Sigmoid", each.inputs[0]))


def _log1p(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Log", w.add("Add", each.inputs[0], w.number(1, FLOAT)))


def _expm1(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Sub", w.add("Exp", each.inputs[0]), w.number(1, FLOAT))


def _fill(w: _Writer, each: Node, x: Value) -> str:
    return w.add("Expand", each.inputs[1], each.inputs[0])


def _layer_norm(w: _Writer, each: Node, x: Value) -> str:
    inputs = [*each.inputs, ""][:2] + list(each.inputs[2:])
    inputs[1] = inputs[1] or w.number(np.ones(x.shape[each.settings["axis"] :]), FLOAT)
    return w.add("LayerNormalization", *inputs, **_attributes(each))


def _rms_norm(w: _Writer, each: Node, x: Value) -> str:
    rank = len(x.shape)
    axes = w.number(range(each.settings["axis"] % rank, rank), WHOLE)
    mean = w.add("ReduceMean", w.add("Mul", each.inputs[0], each.inputs[0]), axes)
    root = w.add("Sqrt", w.add("Add", mean, w.number(each.settings["epsilon"], FLOAT)))
    y = w.add("Div", each.inputs[0], root)
    return w.add("Mul", y, each.inputs[1]) if each.inputs[1:] else y


def _attention(w: _Writer, each: Node, x: Value) -> str:
    q, k, v, *mask = each.inputs
    keys, settings = w.values[k].shape, each.settings
    scale = settings["scale"] or x.shape[-1] ** -0.5
    turned = [*range(len(keys) - 2), len(keys) - 1, len(keys) - 2]
    scores = w.add("MatMul", w.add("Mul", q, w.number(scale, FLOAT)), w.add("Transpose", k, perm=turned))
    kept = ""
    if settings["is_causal"]:
        kept = w.number(np.tri(x.shape[-2], keys[-2]), BOOL)
    elif mask and w.values[mask[0]].dtype == BOOL:
        kept = mask[0]
    elif mask:
        scores = w.add("Add", scores, mask[0])
    if kept:
        scores = w.add("Where", kept, scores, w.number(-3e38, FLOAT))
    return w.add("MatMul", w.add("Softmax", scores, axis=-1), v)


def _adaptive(pool: str, whole: str) -> _Write:
    def write(w: _Writer, each: Node, x: Value) -> str:
        made = each.settings["sizes"]
        rank, space = len(x.shape), x.shape[-len(made) :]
        if set(made) == {1}:
            return w.add(whole, each.inputs[0], w.number(range(rank - len(made), rank), WHOLE))
        if rank != len(made) + 2 or any(size % number for size, number in zip(space, made, strict=True)):
            raise InvalidValue(
                f"{each.operation} {each.name!r:.60} makes {made} of {space}, for which ONNX has no operator: "
                "sizes that divide each other have one"
            )
        window = [size // number for size, number in zip(space, made, strict=True)]
        return w.add(pool, each.inputs[0], kernel_shape=window, strides=window)

    return write


_WRITERS: dict[str, _Write] = {
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "Resize": _resize,
    "Split": _split,
    "Mod": _mod,
    "Swish": _swish,
    "Log1p": _log1p,
    "Expm1": _expm1,
    "Fill": _fill,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Attention": _attention,
    "AdaptiveAveragePool": _adaptive("AveragePool", "ReduceMean"),
    "AdaptiveMaxPool": _adaptive("MaxPool", "ReduceMax"),
}
"""Of operations that are not written as they are."""
