"""Between float32 and numbers of 8 bits, with a scale for the whole tensor or for each entry of an axis."""

from __future__ import annotations

import numpy as np

from torchswat.runtime.operations.rows import (
    FLOAT,
    TYPES,
    Operation,
    Settings,
    Value,
    axis_of,
    choice,
    floats,
    whole,
)

Array = np.ndarray
_AXIS = {"axis": whole(1, -12, 11)}


def _check(settings: Settings, x: Value, scale: Value, zero: Value | None) -> None:
    floats(scale)
    if scale.shape not in ((), (1,)):
        size = x.shape[axis_of(settings["axis"], len(x.shape))]
        if scale.shape != (size,):
            raise ValueError(f"{scale.shape} scales do not fit axis {settings['axis']} of {x.shape}")
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"zero points of shape {zero.shape} do not fit scales {scale.shape}")


def _to_float_rule(settings: Settings, x: Value, scale: Value, zero: Value | None = None) -> Value:
    _check(settings, x, scale, zero)
    if x.dtype.kind not in "iu" or (zero is not None and zero.dtype != x.dtype):
        raise ValueError(f"an input is {x.dtype}; whole numbers and zero points of their type are expected")
    return Value(x.shape, FLOAT)


def _to_whole_rule(settings: Settings, x: Value, scale: Value, zero: Value | None = None) -> Value:
    floats(x)
    _check(settings, x, scale, zero)
    return Value(x.shape, TYPES[settings["to"]] if zero is None else zero.dtype)


def _along(settings: Settings, values: Array, rank: int) -> Array:
    if values.size == 1:
        return values.reshape(())
    axis = settings["axis"] % rank
    return values.reshape([-1 if at == axis else 1 for at in range(rank)])


def _to_float(settings: Settings, x: Array, scale: Array, zero: Array | None = None) -> Array:
    y = x.astype(np.float32)
    if zero is not None:
        y -= _along(settings, zero, x.ndim).astype(np.float32)
    y *= _along(settings, scale, x.ndim)
    return y


def _to_whole(settings: Settings, x: Array, scale: Array, zero: Array | None = None) -> Array:
    dtype = TYPES[settings["to"]] if zero is None else zero.dtype
    y = np.rint(x / _along(settings, scale, x.ndim))
    if zero is not None:
        y += _along(settings, zero, x.ndim)
    limits = np.iinfo(dtype)
    return np.nan_to_num(np.clip(y, limits.min, limits.max)).astype(dtype)


OPERATIONS = {
    "DequantizeLinear": Operation(_to_float_rule, _to_float, (2, 3), _AXIS),
    "QuantizeLinear": Operation(_to_whole_rule, _to_whole, (2, 3), {**_AXIS, "to": choice("uint8", "int8")}),
}
