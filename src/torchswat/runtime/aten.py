"""The operations of `torch.export` in those of a graph: one function for each family.

A function of the table takes the writer of the graph and the arguments of a call, in which tensors are `Made`
and sizes that are not fixed are `Size`, and returns the names of what it wrote. What is not in the table is
decomposed by torch; what torch cannot decompose is refused.
"""

from __future__ import annotations

import math
import operator
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
    """A tensor: its name, and what torch knows of it."""

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
    """Nodes and tensors as they are written; `call` is what torch knows of the result of the call at hand."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.constants: dict[tuple, str] = {}
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
        """Return the sizes of a tensor, fixed where torch knows them."""
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


# ---- sizes -------------------------------------------------------------------------------------------------


@on("sym_size.int")
def _size(w: Writer, x: Made, axis: int) -> Number:
    return w.size(x, axis)


def _arithmetic(operation: str) -> Function:
    def function(w: Writer, a: Number, b: Number) -> Size:
        first, second = (x.name if isinstance(x, Size) else w.constant([x]) for x in (a, b))
        return Size(w.add(operation, first, second))

    return function


def _ratio(w: Writer, a: Number, b: Number) -> Size:
    first, second = (
        w.add("Cast", x.name, to="float32") if isinstance(x, Size) else w.constant([x], "float32")
        for x in (a, b)
    )
    return Size(w.add("Div", first, second))


def _whole(rounding: str) -> Function:
    def function(w: Writer, a: Size) -> Size:
        x = w.add("Cast", a.name, to="float32")
        return Size(w.add("Cast", w.add(rounding, x) if rounding else x, to="int64"))

    return function


SIZES: dict[Any, Function] = {
    operator.add: _arithmetic("Add"),
    operator.sub: _arithmetic("Sub"),
    operator.mul: _arithmetic("Mul"),
    operator.floordiv: _arithmetic("Div"),
    operator.mod: _arithmetic("Mod"),
    operator.truediv: _ratio,
    operator.neg: lambda w, a: Size(w.add("Neg", a.name)),
    torch.sym_max: _arithmetic("Max"),
    torch.sym_min: _arithmetic("Min"),
    torch.sym_float: lambda w, a: Size(w.add("Cast", a.name, to="float32")),
    torch.sym_int: _whole(""),
    math.floor: _whole("Floor"),
    math.ceil: _whole("Ceil"),
    math.trunc: _whole(""),
}
"""Python's arithmetic with sizes."""


# ---- convolutions, products, norms -------------------------------------------------------------------------


def _list(values: Any, rank: int) -> tuple[int, ...]:
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    return tuple(values * rank if len(values) == 1 else values)


@on(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"
)
def _conv(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    rank = weight.rank - 2
    settings = {"strides": _list(stride, rank), "dilations": _list(dilation, rank), "group": groups}
    if padding == "same":  # of stride 1: what is odd lies behind
        around = [
            (size - 1) * step
            for size, step in zip(weight.value.shape[2:], settings["dilations"], strict=True)
        ]
        pads = *(each // 2 for each in around), *(each - each // 2 for each in around)
    else:
        pads = _list(0 if padding == "valid" else padding, rank) * 2
    return _batched(
        w, x, rank + 2, lambda name: w.add("Conv", name, weight.name, _name(bias), pads=pads, **settings)
    )


@on("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> str:
    rank = weight.rank - 2
    settings = {
        "strides": _list(stride, rank),
        "dilations": _list(dilation, rank),
        "pads": _list(padding, rank) * 2,
        "output_padding": _list(output_padding, rank),
        "group": groups,
    }
    return _batched(
        w, x, rank + 2, lambda name: w.add("ConvTranspose", name, weight.name, _name(bias), **settings)
    )


@on("convolution.default")
def _convolution(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> str:
    if transposed:
        return _conv_transpose(w, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(w, x, weight, bias, stride, padding, dilation, groups)


def _name(made: Made | None) -> str:
    return "" if made is None else made.name


def _batched(w: Writer, x: Made, rank: int, make: Callable[[str], str]) -> str:
    """Run what needs a batch on a tensor that may have none."""
    if x.rank == rank:
        return make(x.name)
    first = w.constant([0])
    return w.add("Squeeze", make(w.add("Unsqueeze", x.name, first)), first)


@on("linear.default")
def _linear(w: Writer, x: Made, weight: Made, bias: Made | None = None) -> str:
    if x.rank == 2:
        return w.add("Gemm", x.name, weight.name, _name(bias), transB=1)
    y = w.add("MatMul", x.name, w.add("Transpose", weight.name, perm=(1, 0)))
    return y if bias is None else w.add("Add", y, bias.name)


@on("matmul.default", "mm.default", "bmm.default", "dot.default", "mv.default")
def _matmul(w: Writer, a: Made, b: Made) -> str:
    return w.add("MatMul", w.operand(a, w.dtype), w.operand(b, w.dtype))


@on("addmm.default", "baddbmm.default")
def _addmm(w: Writer, c: Made, a: Made, b: Made, *, beta: float = 1, alpha: float = 1) -> str:
    y = _scaled(w, w.add("MatMul", a.name, b.name), alpha)
    return w.add("Add", y, _scaled(w, c.name, beta))


def _scaled(w: Writer, name: str, factor: float) -> str:
    return name if factor == 1 else w.add("Mul", name, w.constant(factor, "float32"))


@on("einsum.default")
def _einsum(w: Writer, equation: str, operands: Sequence[Made], *, path: Any = None) -> str:
    equation = equation.replace(" ", "")
    if "." in equation:
        raise Unsupported("an ellipsis in einsum")
    if "->" not in equation:
        letters = equation.replace(",", "")
        equation += "->" + "".join(sorted(each for each in set(letters) if letters.count(each) == 1))
    return w.add("Einsum", *(each.name for each in operands), equation=equation)


@on("scaled_dot_product_attention.default")
def _attention(
    w: Writer,
    q: Made,
    k: Made,
    v: Made,
    mask: Made | None = None,
    dropout: float = 0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    if enable_gqa:
        raise Unsupported("attention with fewer heads of keys than of queries")
    return w.add(
        "Attention", q.name, k.name, v.name, _name(mask), scale=scale or 0.0, is_causal=int(is_causal)
    )


@on("_native_batch_norm_legit_no_training.default")
def _batch_norm(
    w: Writer, x: Made, weight: Any, bias: Any, mean: Made, variance: Made, momentum: float, eps: float
) -> tuple:
    channels = mean.value.shape[0]
    scale = weight.name if weight is not None else w.constant(np.ones(channels), "float32")
    shift = bias.name if bias is not None else w.constant(np.zeros(channels), "float32")
    return (w.add("BatchNormalization", x.name, scale, shift, mean.name, variance.name, epsilon=eps),)


@on("layer_norm.default")
def _layer_norm(
    w: Writer,
    x: Made,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> str:
    return w.add("LayerNormalization", x.name, _name(weight), _name(bias), axis=-len(shape), epsilon=eps)


@on("native_layer_norm.default")
def _native_layer_norm(w: Writer, x: Made, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple:
    return (_layer_norm(w, x, shape, weight, bias, eps),)


@on("rms_norm.default")
def _rms_norm(w: Writer, x: Made, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> str:
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    return w.add("RMSNormalization", x.name, _name(weight), axis=-len(shape), epsilon=eps)


@on("group_norm.default")
def _group_norm(
    w: Writer,
    x: Made,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> str:
    names = _scale_and_shift(w, x, weight, bias)
    return w.add("GroupNormalization", x.name, *names, num_groups=groups, epsilon=eps)


def _scale_and_shift(w: Writer, x: Made, weight: Any, bias: Any) -> tuple[str, str]:
    channels = x.value.shape[1]
    return (
        weight.name if weight is not None else w.constant(np.ones(channels), "float32"),
        bias.name if bias is not None else w.constant(np.zeros(channels), "float32"),
    )


@on("instance_norm.default")
def _instance_norm(
    w: Writer,
    x: Made,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> str:
    names = _scale_and_shift(w, x, weight, bias)
    if not use_input_stats:
        return w.add("BatchNormalization", x.name, *names, mean.name, variance.name, epsilon=eps)
    return w.add("InstanceNormalization", x.name, *names, epsilon=eps)


# ---- entry by entry ----------------------------------------------------------------------------------------

_UNARY = {
    "abs": "Abs", "acos": "Acos", "asin": "Asin", "atan": "Atan", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh",
    "erf": "Erf", "exp": "Exp", "expm1": "Expm1", "floor": "Floor", "hardswish": "HardSwish", "log": "Log",
    "log1p": "Log1p", "mish": "Mish", "neg": "Neg", "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round",
    "sigmoid": "Sigmoid", "sign": "Sign", "silu": "Swish", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt",
    "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
_ANY_TYPE = {"abs", "neg", "relu", "sign"}


def _unary(name: str, operation: str) -> Function:
    def function(w: Writer, x: Made) -> str:
        return w.add(operation, w.operand(x, w.dtype if name in _ANY_TYPE else "float32"))

    return function


TABLE.update({f"{name}.default": _unary(name, operation) for name, operation in _UNARY.items()})


@on("rsqrt.default")
def _rsqrt(w: Writer, x: Made) -> str:
    return w.add("Reciprocal", w.add("Sqrt", x.name))


@on("gelu.default")
def _gelu(w: Writer, x: Made, *, approximate: str = "none") -> str:
    return w.add("Gelu", x.name, approximate=approximate)


@on("hardsigmoid.default")
def _hard_sigmoid(w: Writer, x: Made) -> str:
    return w.add("HardSigmoid", x.name, alpha=1 / 6, beta=0.5)


@on("leaky_relu.default")
def _leaky(w: Writer, x: Made, slope: float = 0.01) -> str:
    return w.add("LeakyRelu", x.name, alpha=slope)


@on("elu.default")
def _elu(w: Writer, x: Made, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    if input_scale == 1 and scale == 1:
        return w.add("Elu", x.name, alpha=alpha)
    if input_scale == 1:
        return w.add("Selu", x.name, alpha=alpha, gamma=scale)
    return w.add("Celu", x.name, alpha=alpha)


@on("celu.default")
def _celu(w: Writer, x: Made, alpha: float = 1.0) -> str:
    return w.add("Celu", x.name, alpha=alpha)


@on("selu.default")
def _selu(w: Writer, x: Made) -> str:
    return w.add("Selu", x.name)


@on("softplus.default")
def _softplus(w: Writer, x: Made, beta: float = 1, threshold: float = 20) -> str:
    return _scaled(w, w.add("Softplus", _scaled(w, x.name, beta)), 1 / beta)


@on("prelu.default", "_prelu_kernel.default")
def _prelu(w: Writer, x: Made, slope: Made) -> str:
    name = slope.name
    if slope.rank == 1 and slope.value.numel() > 1 and x.rank > 2:
        name = w.add("Unsqueeze", name, w.constant(list(range(1, x.rank - 1))))
    return w.add("PRelu", x.name, name)


@on("clamp.default", "hardtanh.default", "clamp_min.default", "clamp_max.default", "relu6.default")
def _clamp(w: Writer, x: Made, low: Number = None, high: Number = None, **named: Number) -> str:
    low, high = named.get("min", low), named.get("max", high)
    bounds = ["" if each is None else w.operand(each, w.dtype) for each in (low, high)]
    return w.add("Clip", w.operand(x, w.dtype), *bounds)


TABLE["hardtanh.default"] = lambda w, x, low=-1, high=1: _clamp(w, x, low, high)
TABLE["relu6.default"] = lambda w, x: _clamp(w, x, 0, 6)
TABLE["clamp_max.default"] = lambda w, x, high: _clamp(w, x, None, high)


@on("clamp.Tensor")
def _clamp_tensor(w: Writer, x: Made, low: Any = None, high: Any = None) -> str:
    name = w.operand(x, w.dtype)
    name = name if low is None else w.add("Max", name, w.operand(low, w.dtype))
    return name if high is None else w.add("Min", name, w.operand(high, w.dtype))


def _binary(operation: str) -> Function:
    def function(w: Writer, a: Any, b: Any, *, alpha: float = 1) -> str:
        dtype = w.dtype if w.dtype != "bool" else "int64"
        second = w.operand(b, dtype)
        if alpha != 1:
            second = w.add("Mul", second, w.constant(alpha, dtype))
        return w.add(operation, w.operand(a, dtype), second)

    return function


for _kind in ("Tensor", "Scalar"):
    TABLE[f"add.{_kind}"] = _binary("Add")
    TABLE[f"sub.{_kind}"] = _binary("Sub")
    TABLE[f"mul.{_kind}"] = _binary("Mul")
    TABLE[f"remainder.{_kind}"] = _binary("Mod")
TABLE["maximum.default"] = _binary("Max")
TABLE["minimum.default"] = _binary("Min")
TABLE["rsub.Scalar"] = lambda w, a, b, alpha=1: _binary("Sub")(w, b, a, alpha=alpha)


@on("mul.Tensor")
def _mul(w: Writer, a: Any, b: Any) -> str:
    if w.dtype == "bool":
        return w.add("And", w.operand(a, "bool"), w.operand(b, "bool"))
    return _binary("Mul")(w, a, b)


@on("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "floor_divide.default")
def _div(w: Writer, a: Any, b: Any, *, rounding_mode: str | None = None) -> str:
    if w.dtype == "float32" or rounding_mode == "trunc":
        y = w.add("Div", w.operand(a, w.dtype), w.operand(b, w.dtype))
        rounding = {"floor": "Floor", "trunc": None if w.dtype == "int64" else "Trunc"}.get(
            rounding_mode or ""
        )
        if rounding == "Trunc":
            return w.add("Mul", w.add("Sign", y), w.add("Floor", w.add("Abs", y)))
        return y if rounding is None else w.add(rounding, y)
    first, second = (
        w.operand(each, w.dtype) for each in (a, b)
    )  # downwards: what is left is taken off first
    return w.add("Div", w.add("Sub", first, w.add("Mod", first, second)), second)


TABLE["floor_divide.default"] = lambda w, a, b: _div(w, a, b, rounding_mode="floor")


@on("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(w: Writer, a: Any, b: Any) -> str:
    return w.add("Pow", w.operand(a, w.dtype), w.operand(b, w.dtype))


_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


def _comparison(operation: str) -> Function:
    def function(w: Writer, a: Made, b: Any) -> str:
        whole = a.dtype != "float32" and (
            b.dtype != "float32" if isinstance(b, Made) else not isinstance(b, float)
        )
        dtype = "int64" if whole else "float32"
        return w.add(operation, w.operand(a, dtype), w.operand(b, dtype))

    return function


for _name_, _operation in _COMPARISONS.items():
    for _kind in ("Tensor", "Scalar"):
        TABLE[f"{_name_}.{_kind}"] = _comparison(_operation)
for _kind in ("Tensor", "Scalar"):
    TABLE[f"ne.{_kind}"] = lambda w, a, b: w.add("Not", _comparison("Equal")(w, a, b))


def _logical(operation: str) -> Function:
    return lambda w, a, b: w.add(operation, w.operand(a, "bool"), w.operand(b, "bool"))


for _name_, _operation in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    TABLE[f"logical_{_name_}.default"] = _logical(_operation)


def _bitwise(operation: str) -> Function:
    def function(w: Writer, a: Any, b: Any) -> str:
        if w.dtype != "bool":
            raise Unsupported("bits of whole numbers")
        return _logical(operation)(w, a, b)

    return function


for _name_, _operation in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    TABLE[f"bitwise_{_name_}.Tensor"] = _bitwise(_operation)
TABLE["bitwise_not.default"] = lambda w, x: w.add("Not", w.operand(x, "bool"))
TABLE["logical_not.default"] = lambda w, x: w.add("Not", w.operand(x, "bool"))
TABLE["isnan.default"] = lambda w, x: w.add("IsNaN", x.name)
TABLE["isinf.default"] = lambda w, x: w.add("IsInf", x.name)


@on("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(w: Writer, condition: Made, a: Any, b: Any) -> str:
    return w.add("Where", w.operand(condition, "bool"), w.operand(a, w.dtype), w.operand(b, w.dtype))


@on("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(w: Writer, x: Made, mask: Made, value: Any) -> str:
    return _where(w, mask, value, x)


# ---- along axes --------------------------------------------------------------------------------------------


def _axes(w: Writer, axes: Any) -> str:
    if axes is None or axes == []:
        return ""
    return w.constant(list(axes) if isinstance(axes, (list, tuple)) else [axes])


def _reduction(operation: str) -> Function:
    def function(w: Writer, x: Made, axes: Any = None, keep: bool = False, *, dtype: Any = None) -> str:
        # Sums of bools count; means are of floats.
        name = w.operand(x, w.dtype if w.dtype != "bool" else "int64")
        y = w.add(operation, name, _axes(w, axes), keepdims=int(keep))
        return w.add("Cast", y, to="bool") if w.dtype == "bool" else y

    return function


_REDUCTIONS = {
    "mean.dim": "ReduceMean", "mean.default": "ReduceMean", "sum.dim_IntList": "ReduceSum",
    "sum.default": "ReduceSum", "amax.default": "ReduceMax", "amin.default": "ReduceMin",
    "max.default": "ReduceMax", "min.default": "ReduceMin", "prod.default": "ReduceProd",
    "prod.dim_int": "ReduceProd", "logsumexp.default": "ReduceLogSumExp", "any.default": "ReduceMax",
    "any.dim": "ReduceMax", "any.dims": "ReduceMax", "all.default": "ReduceMin", "all.dim": "ReduceMin",
    "all.dims": "ReduceMin",
}  # fmt: skip
TABLE.update({name: _reduction(operation) for name, operation in _REDUCTIONS.items()})


def _moments(root: bool, both: bool) -> Function:
    def function(
        w: Writer, x: Made, axes: Any = None, *, correction: float | None = None, keepdim: bool = False
    ) -> Any:
        correction = 1 if correction is None else correction
        found = _axes(w, axes)
        mean = w.add("ReduceMean", x.name, found, keepdims=1)
        squares = w.add(
            "ReduceSum",
            w.add("Pow", w.add("Sub", x.name, mean), w.constant(2.0, "float32")),
            found,
            keepdims=int(keepdim),
        )
        ones = range(x.rank) if not axes else [axis % x.rank for axis in axes]
        counted = w.sizes([w.size(x, axis) for axis in ones])
        entries = w.add("Cast", w.add("ReduceProd", counted, keepdims=0), to="float32")
        y = w.add("Div", squares, w.add("Sub", entries, w.constant(correction, "float32")))
        y = w.add("Sqrt", y) if root else y
        if both:
            return y, mean if keepdim else w.add("Squeeze", mean, found or w.constant(list(range(x.rank))))
        return y

    return function


TABLE["var.correction"], TABLE["std.correction"] = _moments(False, False), _moments(True, False)
TABLE["var_mean.correction"], TABLE["std_mean.correction"] = _moments(False, True), _moments(True, True)


@on("linalg_vector_norm.default")
def _vector_norm(
    w: Writer, x: Made, p: float = 2, axes: Any = None, keep: bool = False, *, dtype: Any = None
) -> str:
    if p not in (1, 2):
        raise Unsupported(f"a norm of order {p}")
    return w.add(f"ReduceL{int(p)}", x.name, _axes(w, axes), keepdims=int(keep))


def _extreme(operation: str) -> Function:
    def function(w: Writer, x: Made, axis: int | None = None, keep: bool = False) -> str:
        name = x.name if axis is not None else w.add("Reshape", x.name, w.constant([-1]))
        return w.add(operation, name, axis=axis or 0, keepdims=int(keep))

    return function


TABLE["argmax.default"], TABLE["argmin.default"] = _extreme("ArgMax"), _extreme("ArgMin")


def _extreme_of(operation: str) -> Function:
    def function(w: Writer, x: Made, axis: int, keep: bool = False) -> tuple[str, str]:
        found = w.add(f"Reduce{operation}", x.name, w.constant([axis]), keepdims=int(keep))
        return found, w.add(f"Arg{operation}", x.name, axis=axis, keepdims=int(keep))

    return function


TABLE["max.dim"], TABLE["min.dim"] = _extreme_of("Max"), _extreme_of("Min")


@on("softmax.int", "_softmax.default", "_safe_softmax.default")
def _softmax(w: Writer, x: Made, axis: int, *more: Any, **named: Any) -> str:
    return w.add("Softmax", w.operand(x, "float32"), axis=axis)


@on("log_softmax.int", "_log_softmax.default")
def _log_softmax(w: Writer, x: Made, axis: int, *more: Any, **named: Any) -> str:
    return w.add("LogSoftmax", x.name, axis=axis)


@on("cumsum.default")
def _cumsum(w: Writer, x: Made, axis: int, *, dtype: Any = None) -> str:
    return w.add("CumSum", w.operand(x, w.dtype), w.constant(axis))


@on("topk.default")
def _topk(
    w: Writer, x: Made, k: Number, axis: int = -1, largest: bool = True, ordered: bool = True
) -> list[str]:
    return w.many("TopK", 2, x.name, w.sizes([k]), axis=axis, largest=int(largest))


# ---- shapes and parts --------------------------------------------------------------------------------------


@on("view.default", "reshape.default", "_unsafe_view.default", "view_copy.default")
def _view(w: Writer, x: Made, sizes: Sequence[Number]) -> str:
    known = [s if isinstance(s, int) else None for s in w.call.shape]
    sizes = [
        k if s == -1 and k is not None and isinstance(s, int) else s
        for s, k in zip(sizes, known, strict=True)
    ]
    return w.add("Reshape", x.name, w.sizes(sizes), allowzero=int(-1 not in sizes))


@on("flatten.using_ints")
def _flatten(w: Writer, x: Made, start: int = 0, end: int = -1) -> str:
    start, end = start % max(1, x.rank), end % max(1, x.rank)
    if start == 1 and end == x.rank - 1:
        return w.add("Flatten", x.name)
    sizes = w.shape_of(x)
    return w.add("Reshape", x.name, w.sizes([*sizes[:start], -1, *sizes[end + 1 :]]))


@on("permute.default")
def _permute(w: Writer, x: Made, order: Sequence[int]) -> str:
    return w.add("Transpose", x.name, perm=tuple(axis % x.rank for axis in order))


@on("transpose.int", "t.default", "mT.default")
def _transpose(w: Writer, x: Made, a: int = -2, b: int = -1) -> str:
    if x.rank < 2:
        return w.add("Identity", x.name)
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return w.add("Transpose", x.name, perm=tuple(order))


@on("squeeze.dim", "squeeze.dims", "squeeze.default")
def _squeeze(w: Writer, x: Made, axes: Any = None) -> str:
    wanted = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    ones = [axis % x.rank for axis in wanted if x.rank and x.value.shape[axis] == 1]
    return w.add("Squeeze", x.name, w.constant(ones)) if ones else w.add("Identity", x.name)


@on("unsqueeze.default")
def _unsqueeze(w: Writer, x: Made, axis: int) -> str:
    return w.add("Unsqueeze", x.name, w.constant([axis]))


@on("expand.default", "expand_copy.default", "broadcast_to.default")
def _expand(w: Writer, x: Made, sizes: Sequence[Number], *, implicit: bool = False) -> str:
    return w.add("Expand", x.name, w.sizes([1 if isinstance(s, int) and s == -1 else s for s in sizes]))


@on("repeat.default")
def _repeat(w: Writer, x: Made, times: Sequence[Number]) -> str:
    name, more = x.name, len(times) - x.rank
    name = w.add("Unsqueeze", name, w.constant(list(range(more)))) if more else name
    return w.add("Tile", name, w.sizes(times))


@on("repeat_interleave.self_int")
def _interleave(w: Writer, x: Made, times: int, axis: int | None = None, **named: Any) -> str:
    if axis is None:
        raise Unsupported("repeat_interleave without an axis")
    axis %= x.rank
    name = w.add("Unsqueeze", x.name, w.constant([axis + 1]))
    name = w.add("Tile", name, w.constant([times if at == axis + 1 else 1 for at in range(x.rank + 1)]))
    sizes = w.shape_of(x)
    return w.add("Reshape", name, w.sizes([*sizes[:axis], -1, *sizes[axis + 1 :]]))


@on("cat.default")
def _cat(w: Writer, inputs: Sequence[Made], axis: int = 0) -> str:
    kept = [x for x in inputs if not (x.rank == 1 and x.value.shape[0] == 0 and w.call.dim() > 1)]
    return w.add("Concat", *(w.operand(x, w.dtype) for x in kept), axis=axis)


@on("stack.default")
def _stack(w: Writer, inputs: Sequence[Made], axis: int = 0) -> str:
    at = w.constant([axis])
    return w.add("Concat", *(w.add("Unsqueeze", x.name, at) for x in inputs), axis=axis)


@on("split_with_sizes.default")
def _split(w: Writer, x: Made, sizes: Sequence[Number], axis: int = 0) -> list[str]:
    return w.many("Split", len(sizes), x.name, w.sizes(sizes), axis=axis)


@on("split.Tensor", "chunk.default")
def _chunk(w: Writer, x: Made, size: int, axis: int = 0) -> list[str]:
    sizes = [each.shape[axis] for each in w.call]
    if not all(isinstance(each, int) for each in sizes):
        raise Unsupported("parts whose sizes are free")
    return _split(w, x, sizes, axis)


@on("unbind.int")
def _unbind(w: Writer, x: Made, axis: int = 0) -> list[str]:
    return [_select(w, x, axis, at) for at in range(len(w.call))]


@on("select.int")
def _select(w: Writer, x: Made, axis: int, index: Number) -> str:
    place = index.name if isinstance(index, Size) else w.constant([index])
    return w.add("Squeeze", w.add("Gather", x.name, place, axis=axis), w.constant([axis]))


@on("slice.Tensor", "narrow.default")
def _slice(w: Writer, x: Made, axis: int = 0, start: Number = None, end: Number = None, step: int = 1) -> str:
    limits = w.sizes([0 if start is None else start]), w.sizes([2**62 if end is None else end])
    if limits == (w.constant([0]), w.constant([2**62])) and step == 1:
        return w.add("Identity", x.name)
    return w.add("Slice", x.name, *limits, w.constant([axis]), w.constant([step]))


def _narrow(w: Writer, x: Made, axis: int, start: Number, length: Number) -> str:
    return _slice(w, x, axis, start, SIZES[operator.add](w, start, length))


TABLE["narrow.default"] = _narrow


@on("flip.default")
def _flip(w: Writer, x: Made, axes: Sequence[int]) -> str:
    rows = [[-1] * len(axes), [-(2**62)] * len(axes), list(axes), [-1] * len(axes)]
    return w.add("Slice", x.name, *map(w.constant, rows))


@on("roll.default")
def _roll(w: Writer, x: Made, shifts: Sequence[Number], axes: Sequence[int] = ()) -> str:
    if not axes or any(isinstance(shift, Size) for shift in shifts):
        raise Unsupported("a roll of the flattened tensor, or by a free size")
    name = x.name
    for shift, axis in zip(shifts, axes, strict=True):
        at, size = w.constant([axis]), x.value.shape[axis]
        cut = w.constant([-shift % size if isinstance(size, int) else -shift])
        if shift == 0:
            continue
        parts = [
            w.add("Slice", name, cut, w.constant([2**62]), at),
            w.add("Slice", name, w.constant([0]), cut, at),
        ]
        name = w.add("Concat", *parts, axis=axis)
    return name


@on("index_select.default")
def _index_select(w: Writer, x: Made, axis: int, index: Made) -> str:
    return w.add("Gather", x.name, index.name, axis=axis)


@on("embedding.default")
def _embedding(w: Writer, weight: Made, index: Made, *more: Any, **named: Any) -> str:
    return w.add("Gather", weight.name, index.name, axis=0)


@on("gather.default")
def _gather(w: Writer, x: Made, axis: int, index: Made, **named: Any) -> str:
    return w.add("GatherElements", x.name, index.name, axis=axis)


@on("index.Tensor", "_unsafe_index.Tensor")
def _index(w: Writer, x: Made, indices: Sequence[Made | None]) -> str:
    places = [axis for axis, each in enumerate(indices) if each is not None]
    used = [each for each in indices if each is not None]
    if any(each.dtype == "bool" for each in used):
        raise Unsupported("the choice of entries by a mask, whose number depends on data")
    if len(used) == 1:
        return w.add("Gather", x.name, used[0].name, axis=places[0])
    if places != list(range(places[0], places[0] + len(places))):
        raise Unsupported("indices along axes that do not lie side by side")
    # The indexed axes first; GatherND reads whole rows of indices.
    first, rank = places[0], max(each.rank for each in used)
    order = [*places, *(axis for axis in range(x.rank) if axis not in places)]
    name = x.name if first == 0 else w.add("Transpose", x.name, perm=tuple(order))
    shape = w.call.shape[first : first + rank]
    sizes = [size if isinstance(size, int) else None for size in shape]
    if None in sizes:
        common = used[0].name
        for each in used[1:]:
            common = w.add("Add", common, each.name)
        target = w.add("Shape", common)
    else:
        target = w.constant(sizes)
    last = w.constant([-1])
    rows = [w.add("Unsqueeze", w.add("Expand", each.name, target), last) for each in used]
    y = w.add("GatherND", name, w.add("Concat", *rows, axis=-1))
    if first:
        moved = w.call.dim()
        back = [*range(rank, rank + first), *range(rank), *range(rank + first, moved)]
        y = w.add("Transpose", y, perm=tuple(back))
    return y


@on("scatter.src", "scatter.value", "scatter_add.default")
def _scatter(w: Writer, x: Made, axis: int, index: Made, source: Any) -> str:
    if not isinstance(source, Made):
        shape = w.add("Shape", index.name)
        return w.add(
            "ScatterElements",
            x.name,
            index.name,
            w.add("Fill", shape, w.constant([source], x.dtype)),
            axis=axis,
        )
    if any(a != b for a, b in zip(index.value.shape, source.value.shape, strict=True)):
        raise Unsupported("a scatter of fewer entries than there are")
    return w.add("ScatterElements", x.name, index.name, source.name, axis=axis)


TABLE["scatter_add.default"] = lambda w, x, axis, index, source: w.add(
    "ScatterElements", x.name, index.name, source.name, axis=axis, reduction="add"
)


@on("slice_scatter.default", "select_scatter.default")
def _slice_scatter(
    w: Writer, x: Made, source: Made, axis: int = 0, start: Number = None, end: Number = None, step: int = 1
) -> str:
    """What lies before, the new part, and what lies behind."""
    if step != 1:
        raise Unsupported("a slice in steps that is written to")
    size = w.size(x, axis)
    whole = (start is None or start == 0) and (
        end is None or end == size or (isinstance(end, int) and end >= 2**60)
    )
    if whole:
        return w.add("Identity", w.operand(source, x.dtype))
    at, names = w.constant([axis]), [w.operand(source, x.dtype)]
    if start is not None and start != 0:
        names.insert(0, w.add("Slice", x.name, w.constant([0]), w.sizes([start]), at))
    if end is not None and not (isinstance(end, int) and (end >= 2**60 or end == size)):
        names.append(w.add("Slice", x.name, w.sizes([end]), w.constant([2**62]), at))
    return w.add("Concat", *names, axis=axis) if len(names) > 1 else w.add("Identity", names[0])


def _select_scatter(w: Writer, x: Made, source: Made, axis: int, index: int) -> str:
    part = Made(w.add("Unsqueeze", source.name, w.constant([axis])), source.value)
    if index < 0:
        raise Unsupported("a part, counted from the end, that is written to")
    return _slice_scatter(w, x, part, axis, index, index + 1)


TABLE["select_scatter.default"] = _select_scatter


def _pads(w: Writer, x: Made, pads: Sequence[Number]) -> tuple[str, str]:
    """Return torch's padding, which begins with the last axis, as a row, and its axes."""
    pairs = [(pads[at], pads[at + 1]) for at in range(0, len(pads), 2)][::-1]
    axes = w.constant([x.rank - len(pairs) + at for at in range(len(pairs))])
    return w.sizes([*(low for low, _ in pairs), *(high for _, high in pairs)]), axes


@on("constant_pad_nd.default")
def _pad(w: Writer, x: Made, pads: Sequence[Number], value: float = 0) -> str:
    row, axes = _pads(w, x, pads)
    return w.add("Pad", x.name, row, w.constant(value, x.dtype), axes)


@on("pad.default")
def _pad_mode(
    w: Writer, x: Made, pads: Sequence[Number], mode: str = "constant", value: float | None = None
) -> str:
    if mode == "constant":
        return _pad(w, x, pads, value or 0)
    row, axes = _pads(w, x, pads)
    return w.add("Pad", x.name, row, "", axes, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))


@on("pixel_shuffle.default")
def _shuffle(w: Writer, x: Made, block: int) -> str:
    return w.add("DepthToSpace", x.name, blocksize=block, mode="CRD")


@on("pixel_unshuffle.default")
def _unshuffle(w: Writer, x: Made, b: int) -> str:
    n, c, h, v = w.shape_of(x)
    half = [Size(w.add("Div", s.name, w.constant([b]))) if isinstance(s, Size) else s // b for s in (h, v)]
    y = w.add("Reshape", x.name, w.sizes([n, c, half[0], b, half[1], b]))
    y = w.add("Transpose", y, perm=(0, 1, 3, 5, 2, 4))
    return w.add("Reshape", y, w.sizes([n, c * b * b, *half]))


TABLE["tril.default"] = lambda w, x, k=0: w.add("Trilu", x.name, w.constant(k), upper=0)
TABLE["triu.default"] = lambda w, x, k=0: w.add("Trilu", x.name, w.constant(k), upper=1)

# ---- copies and new tensors --------------------------------------------------------------------------------


@on(
    "clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default",
    "dropout.default", "_to_copy.default", "to.dtype", "to.device", "to.dtype_layout", "type_as.default",
    "feature_dropout.default", "native_dropout.default", "detach_.default",
)  # fmt: skip
def _copy(w: Writer, x: Made, *more: Any, **named: Any) -> str:
    return w.add("Identity", x.name) if x.dtype == w.dtype else w.add("Cast", x.name, to=w.dtype)


@on("copy.default")
def _copied(w: Writer, x: Made, source: Made, *more: Any) -> str:
    return w.add("Expand", w.operand(source, x.dtype), w.sizes(w.shape_of(x)))


def _filled(w: Writer, sizes: Sequence[Number], value: Any) -> str:
    return w.add("Fill", w.sizes(sizes), w.operand(value, w.dtype))


TABLE["full.default"] = lambda w, sizes, value, **named: _filled(w, sizes, value)
TABLE["zeros.default"] = lambda w, sizes, **named: _filled(w, sizes, 0)
TABLE["ones.default"] = lambda w, sizes, **named: _filled(w, sizes, 1)
TABLE["new_zeros.default"] = lambda w, x, sizes, **named: _filled(w, sizes, 0)
TABLE["new_ones.default"] = lambda w, x, sizes, **named: _filled(w, sizes, 1)
TABLE["new_full.default"] = lambda w, x, sizes, value, **named: _filled(w, sizes, value)
TABLE["full_like.default"] = lambda w, x, value, **named: _filled(w, w.shape_of(x), value)
TABLE["zeros_like.default"] = lambda w, x, **named: _filled(w, w.shape_of(x), 0)
TABLE["ones_like.default"] = lambda w, x, **named: _filled(w, w.shape_of(x), 1)
TABLE["empty.memory_format"] = TABLE["zeros.default"]
TABLE["empty_like.default"] = TABLE["zeros_like.default"]
TABLE["new_empty.default"] = TABLE["new_zeros.default"]
TABLE["scalar_tensor.default"] = lambda w, value, **named: w.add("Identity", w.operand(value, w.dtype))


@on("arange.start_step")
def _arange(w: Writer, start: Number, end: Number, step: Number = 1, **named: Any) -> str:
    return w.add("Range", *(w.operand(each, w.dtype) for each in (start, end, step)))


TABLE["arange.start"] = lambda w, start, end, **named: _arange(w, start, end)
TABLE["arange.default"] = lambda w, end, **named: _arange(w, 0, end)

# ---- pools and resizing ------------------------------------------------------------------------------------


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, rank: int) -> dict[str, Any]:
    kernel = _list(kernel, rank)
    stride = kernel if stride is None or stride == [] else _list(stride, rank)
    return {
        "kernel_shape": kernel,
        "strides": stride,
        "dilations": _list(dilation, rank),
        "pads": _list(padding, rank) * 2,
        "ceil_mode": int(ceil),
    }


def _max_pool(rank: int, indices: bool) -> Function:
    def function(
        w: Writer,
        x: Made,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
    ) -> Any:
        window = _window(kernel, stride, padding, dilation, ceil, rank)
        y = _batched(w, x, rank + 2, lambda name: w.add("MaxPool", name, **window))
        return (y,) if indices else y

    return function


def _average_pool(rank: int) -> Function:
    def function(
        w: Writer,
        x: Made,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> str:
        window = _window(kernel, stride, padding, 1, ceil, rank)
        settings = {**window, "count_include_pad": int(count_include_pad)}
        if divisor:
            raise Unsupported("a mean with a divisor of its own")
        return _batched(w, x, rank + 2, lambda name: w.add("AveragePool", name, **settings))

    return function


def _adaptive(rank: int, operation: str, indices: bool = False) -> Function:
    def function(w: Writer, x: Made, sizes: Any) -> Any:
        y = w.add(operation, x.name, sizes=_list(sizes, rank))
        return (y,) if indices else y

    return function


for _rank in (1, 2, 3):
    TABLE[f"max_pool{_rank}d.default"] = _max_pool(_rank, False)
    TABLE[f"max_pool{_rank}d_with_indices.default"] = _max_pool(_rank, True)
    TABLE[f"avg_pool{_rank}d.default"] = _average_pool(_rank)
    TABLE[f"adaptive_avg_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveAveragePool")
    TABLE[f"_adaptive_avg_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveAveragePool")
    TABLE[f"adaptive_max_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveMaxPool", True)


def _upsample(rank: int, mode: str, corners: bool, exact: bool = False) -> Function:
    def function(w: Writer, x: Made, sizes: Any, *arguments: Any) -> str:
        """Take the new sizes, whether corners are aligned (of lines and cubics), and scales."""
        aligned = bool(arguments[0]) if corners and arguments else False
        scales = arguments[corners] if len(arguments) > corners else None
        coordinates = "align_corners" if aligned else "half_pixel"
        settings: dict[str, Any] = {"mode": mode, "axes": tuple(range(2, rank + 2))}
        if mode == "nearest":
            coordinates = "half_pixel" if exact else "asymmetric"
            settings["nearest"] = "round_prefer_ceil" if exact else "floor"
        settings["coordinates"] = coordinates
        if sizes is not None:
            return w.add("Resize", x.name, "", w.sizes(sizes), **settings)
        if any(isinstance(scale, Size) for scale in scales or ()):
            raise Unsupported("a scale that depends on sizes")
        return w.add("Resize", x.name, w.constant(scales, "float32"), **settings)

    return function


for _rank in (1, 2, 3):
    TABLE[f"upsample_nearest{_rank}d.vec"] = _upsample(_rank, "nearest", False)
    TABLE[f"_upsample_nearest_exact{_rank}d.vec"] = _upsample(_rank, "nearest", False, True)
TABLE["upsample_linear1d.vec"] = _upsample(1, "linear", True)
TABLE["upsample_bilinear2d.vec"] = _upsample(2, "linear", True)
TABLE["upsample_trilinear3d.vec"] = _upsample(3, "linear", True)
TABLE["upsample_bicubic2d.vec"] = _upsample(2, "cubic", True)
