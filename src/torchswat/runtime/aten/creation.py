"""Copies and new tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchswat.runtime.aten.writer import TABLE, Made, Number, Writer, on


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
