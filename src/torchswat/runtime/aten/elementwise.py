"""What is computed entry by entry."""

from __future__ import annotations

from typing import Any

from torchswat.runtime.aten.writer import TABLE, Function, Made, Number, Unsupported, Writer, on, scaled

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
    return scaled(w, w.add("Softplus", scaled(w, x.name, beta)), 1 / beta)


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
