"""Operations entry by entry: arithmetic, comparisons, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchswat.runtime.operations.rows import (
    BOOL,
    FLOAT,
    MANY,
    TYPES,
    Operation,
    Settings,
    Value,
    broadcast,
    broadcast_shape,
    choice,
    float_same,
    floats,
    real,
    same,
)

Array = np.ndarray


def erf(x: Array) -> Array:
    """Return the error function of float32, within 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    series = np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(factor)
    return np.copysign(1 - series * t * np.exp(-x * x), x)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    y = np.negative(x)
    np.exp(y, out=y)
    y += 1
    return np.reciprocal(y, out=y)


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x))."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(settings: Settings, x: Array) -> Array:
    """Return x times the normal distribution's share below x, or its approximation by tanh."""
    if settings["approximate"] == "tanh":
        y = np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x))
    else:
        y = erf(x * np.float32(0.70710678118654752))
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def elu(x: Array, alpha: float, gamma: float = 1, scale: float = 1) -> Array:
    """Return gamma * (x where positive, else alpha * (exp(x / scale) - 1))."""
    low = np.expm1(np.minimum(x, 0) / np.float32(scale)) * np.float32(alpha)
    return (np.maximum(x, 0) + low) * np.float32(gamma)


def hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    """Return alpha * x + beta, cut to [0, 1]."""
    y = x * np.float32(alpha)
    y += np.float32(beta)
    return np.clip(y, 0, 1, out=y)


def divide(a: Array, b: Array) -> Array:
    """Divide; whole numbers are cut towards zero."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if not np.all(b):
        raise ValueError("a whole number is divided by 0")
    return np.trunc(np.divide(a, b)).astype(a.dtype) if np.any(a < 0) or np.any(b < 0) else a // b


def power(a: Array, b: Array) -> Array:
    """Return a to the power b, in the type of a."""
    if a.dtype.kind == "f" and b.size == 1:
        exponent = float(b.reshape(-1)[0])
        quick = {2.0: np.square, 0.5: np.sqrt, -1.0: np.reciprocal, 1.0: np.positive}.get(exponent)
        if quick is not None and b.ndim <= a.ndim:
            return quick(a)
    return np.power(a.astype(np.float64), b).astype(a.dtype)


def _mod(settings: Settings, a: Array, b: Array) -> Array:
    if a.dtype.kind != "f" and not np.all(b):
        raise ValueError("a whole number is divided by 0")
    return np.mod(a, b)


def _numbers(settings: Settings, *inputs: Value) -> Value:
    if any(value.dtype == BOOL for value in inputs):
        raise ValueError("its inputs are bool; numbers are expected")
    return broadcast(settings, *inputs)


def _power_rule(settings: Settings, a: Value, b: Value) -> Value:
    if BOOL in (a.dtype, b.dtype):
        raise ValueError("its inputs are bool; numbers are expected")
    return Value(broadcast_shape(a.shape, b.shape), a.dtype)


def _compare(settings: Settings, a: Value, b: Value) -> Value:
    return Value(broadcast(settings, a, b).shape, BOOL)


def _logical(settings: Settings, *inputs: Value) -> Value:
    if any(value.dtype != BOOL for value in inputs):
        raise ValueError("its inputs must be bool")
    return broadcast(settings, *inputs)


def _where_rule(settings: Settings, condition: Value, a: Value, b: Value) -> Value:
    if condition.dtype != BOOL:
        raise ValueError(f"the condition is {condition.dtype}; bool is expected")
    both = broadcast(settings, a, b)
    return Value(broadcast_shape(condition.shape, both.shape), both.dtype)


def _bounds(settings: Settings, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    for bound in (low, high):
        if bound is not None and (bound.shape not in ((), (1,)) or bound.dtype != x.dtype):
            raise ValueError(f"a bound is {bound.dtype} of shape {bound.shape}; one {x.dtype} is expected")
    return Value(x.shape, x.dtype)


def _clip(settings: Settings, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    # From below first: where the bounds cross, the upper one holds.
    y = x if low is None else np.maximum(x, low.reshape(()))
    return y if high is None else np.minimum(y, high.reshape(()))


def _prelu_rule(settings: Settings, x: Value, slope: Value) -> Value:
    floats(x, slope)
    if broadcast_shape(x.shape, slope.shape) != x.shape:
        raise ValueError(f"the slope {slope.shape} does not fit {x.shape}")
    return Value(x.shape, FLOAT)


def _cast_rule(settings: Settings, x: Value) -> Value:
    return Value(x.shape, TYPES[settings["to"]])


def _cast(settings: Settings, x: Array) -> Array:
    dtype = TYPES[settings["to"]]
    if x.dtype.kind == "f" and dtype.kind in "iu":  # what does not fit is cut, not left to the processor
        limits = np.iinfo(dtype)
        x = np.clip(np.nan_to_num(np.trunc(x.astype(np.float64))), limits.min, min(limits.max, 2**62))
    return x.astype(dtype, copy=False)


def _fold(function: Any) -> Callable[..., Array]:
    """Return a body for any number of inputs."""

    def body(settings: Settings, *arrays: Array) -> Array:
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return body


def _unary(function: Callable[[Array], Array]) -> Operation:
    return Operation(float_same, lambda settings, x: function(x))


def _any_type(function: Callable[[Array], Array]) -> Operation:
    return Operation(same, lambda settings, x: function(x))


def _pair(function: Callable[[Array, Array], Array], rule: Callable[..., Value] = _numbers) -> Operation:
    return Operation(rule, lambda settings, a, b: function(a, b), (2, 2))


def _test(function: Callable[[Array], Array]) -> Operation:
    return Operation(lambda settings, x: Value(x.shape, BOOL), lambda settings, x: function(x))


OPERATIONS = {
    # of one input
    **{
        name: _unary(function)
        for name, function in {
            "Acos": np.arccos,
            "Asin": np.arcsin,
            "Atan": np.arctan,
            "Ceil": np.ceil,
            "Cos": np.cos,
            "Cosh": np.cosh,
            "Erf": erf,
            "Exp": np.exp,
            "Floor": np.floor,
            "HardSwish": lambda x: x * hard_sigmoid(x, 1 / 6, 0.5),
            "Log": np.log,
            "Log1p": np.log1p,
            "Expm1": np.expm1,
            "Mish": lambda x: x * np.tanh(softplus(x)),
            "Reciprocal": np.reciprocal,
            "Round": np.rint,
            "Sigmoid": sigmoid,
            "Sin": np.sin,
            "Sinh": np.sinh,
            "Softplus": softplus,
            "Softsign": lambda x: x / (1 + np.abs(x)),
            "Sqrt": np.sqrt,
            "Swish": lambda x: x * sigmoid(x),
            "Tan": np.tan,
            "Tanh": np.tanh,
        }.items()
    },
    "Abs": _any_type(np.abs),
    "Neg": _any_type(np.negative),
    "Relu": _any_type(lambda x: np.maximum(x, np.zeros((), x.dtype))),
    "Sign": _any_type(np.sign),
    "Identity": Operation(same, lambda settings, x: x, is_view=True),
    "IsNaN": _test(np.isnan),
    "IsInf": _test(np.isinf),
    "Not": Operation(_logical, lambda settings, x: np.logical_not(x)),
    "Cast": Operation(_cast_rule, _cast, settings={"to": choice(*TYPES)}, is_view=True),
    "Celu": Operation(
        float_same,
        lambda settings, x: elu(x, settings["alpha"], 1, settings["alpha"]),
        settings={"alpha": real(1.0, 1e-6, 1e6)},
    ),
    "Elu": Operation(
        float_same, lambda settings, x: elu(x, settings["alpha"]), settings={"alpha": real(1.0)}
    ),
    "Gelu": Operation(float_same, gelu, settings={"approximate": choice("none", "tanh")}),
    "HardSigmoid": Operation(
        float_same,
        lambda settings, x: hard_sigmoid(x, settings["alpha"], settings["beta"]),
        settings={"alpha": real(0.2), "beta": real(0.5)},
    ),
    "LeakyRelu": Operation(
        float_same,
        lambda settings, x: np.where(x >= 0, x, x * np.float32(settings["alpha"])),
        settings={"alpha": real(0.01)},
    ),
    "Selu": Operation(
        float_same,
        lambda settings, x: elu(x, settings["alpha"], settings["gamma"]),
        settings={"alpha": real(1.6732632423543772), "gamma": real(1.0507009873554805)},
    ),
    "ThresholdedRelu": Operation(
        float_same,
        lambda settings, x: np.where(x > np.float32(settings["alpha"]), x, np.float32(0)),
        settings={"alpha": real(1.0)},
    ),
    # of several
    "Add": _pair(np.add),
    "Sub": _pair(np.subtract),
    "Mul": _pair(np.multiply),
    "Div": _pair(divide),
    "Mod": Operation(_numbers, _mod, (2, 2)),
    "Pow": _pair(power, _power_rule),
    "Max": Operation(broadcast, _fold(np.maximum), (1, MANY), is_view=True),
    "Min": Operation(broadcast, _fold(np.minimum), (1, MANY), is_view=True),
    "And": _pair(np.logical_and, _logical),
    "Or": _pair(np.logical_or, _logical),
    "Xor": _pair(np.logical_xor, _logical),
    "Equal": _pair(np.equal, _compare),
    "Less": _pair(np.less, _compare),
    "LessOrEqual": _pair(np.less_equal, _compare),
    "Greater": _pair(np.greater, _compare),
    "GreaterOrEqual": _pair(np.greater_equal, _compare),
    "Where": Operation(_where_rule, lambda settings, c, a, b: np.where(c, a, b), (3, 3)),
    "Clip": Operation(_bounds, _clip, (1, 3), optional=(1,), is_view=True),
    "PRelu": Operation(_prelu_rule, lambda settings, x, slope: np.where(x >= 0, x, x * slope), (2, 2)),
}
