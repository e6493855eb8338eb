"""Arithmetic with sizes that are not fixed."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from torchswat.runtime.aten.writer import Function, Made, Number, Size, Writer, on


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
