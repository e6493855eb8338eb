"""Operations along axes: sums, means, extremes and where they are, softmax, running sums, the largest few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchswat.runtime.operations.rows import (
    AXIS,
    FLOAT,
    WHOLE,
    Operation,
    Settings,
    Value,
    axes_of,
    axis_of,
    count,
    flag,
    floats,
    known,
    whole,
)

Array = np.ndarray


def _axes(settings: Settings, rank: int, axes: list[int] | None) -> tuple[int, ...]:
    if not axes:
        return () if settings["noop_with_empty_axes"] else tuple(range(rank))
    return axes_of(axes, rank)


def reduced(shape: tuple[int, ...], axes: tuple[int, ...], keep: bool) -> tuple[int, ...]:
    """Return a shape without `axes`, or with 1 in their place."""
    kept = (1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)
    return tuple(kept)


def _rule(settings: Settings, x: Value, axes: Value | None = None) -> Value:
    found = _axes(settings, len(x.shape), None if axes is None else known(axes, "axes"))
    if found and not count([x.shape[axis] for axis in found]):
        raise ValueError(f"nothing lies along the axes {found} of {x.shape}")
    return Value(reduced(x.shape, found, bool(settings["keepdims"])), x.dtype)


def _reduce(function: Callable[..., Array]) -> Operation:
    def body(settings: Settings, x: Array, axes: Array | None = None) -> Array:
        found = _axes(settings, x.ndim, None if axes is None else axes.reshape(-1).tolist())
        return function(x, found, bool(settings["keepdims"])).astype(x.dtype, copy=False)

    return Operation(_rule, body, (1, 2), {"keepdims": flag(1), "noop_with_empty_axes": flag()}, is_view=True)


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    most = np.max(x, axis=axes, keepdims=True)
    total = np.log(np.sum(np.exp(x - most), axis=axes, keepdims=True)) + most
    return total if keep else total.reshape(reduced(x.shape, axes, False))


def _place_rule(settings: Settings, x: Value) -> Value:
    axis = axis_of(settings["axis"], len(x.shape))
    if not x.shape[axis]:
        raise ValueError(f"nothing lies along axis {axis} of {x.shape}")
    return Value(reduced(x.shape, (axis,), bool(settings["keepdims"])), WHOLE)


def _place(function: Callable[..., Array]) -> Operation:
    def body(settings: Settings, x: Array) -> Array:
        axis, keep = settings["axis"], bool(settings["keepdims"])
        if not settings["select_last_index"]:
            return function(x, axis=axis, keepdims=keep)
        return x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis, keepdims=keep)

    return Operation(
        _place_rule, body, settings={"axis": AXIS, "keepdims": flag(1), "select_last_index": flag()}
    )


def softmax(x: Array, axis: int) -> Array:
    """Return exp(x), divided by its sum along `axis`."""
    y = x - np.max(x, axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y


def _log_softmax(settings: Settings, x: Array) -> Array:
    y = x - np.max(x, axis=settings["axis"], keepdims=True)
    y -= np.log(np.sum(np.exp(y), axis=settings["axis"], keepdims=True))
    return y


def _along(settings: Settings, x: Value) -> Value:
    floats(x)
    if not x.shape[axis_of(settings["axis"], len(x.shape))]:
        raise ValueError("nothing lies along its axis")
    return Value(x.shape, FLOAT)


def _running_rule(settings: Settings, x: Value, axis: Value) -> Value:
    axis_of(int(known(axis, "axis")[0]), len(x.shape))
    return Value(x.shape, x.dtype)


def _running(settings: Settings, x: Array, axis: Array) -> Array:
    at = int(axis.reshape(-1)[0])
    if settings["reverse"]:
        x = np.flip(x, at)
    y = np.cumsum(x, at, dtype=x.dtype)
    if settings["exclusive"]:
        y = y - x
    return np.flip(y, at) if settings["reverse"] else y


def _top_rule(settings: Settings, x: Value, k: Value) -> list[Value]:
    axis = axis_of(settings["axis"], len(x.shape))
    most = int(known(k, "number of the largest")[0])
    if not 0 <= most <= x.shape[axis]:
        raise ValueError(f"the {most} largest of {x.shape[axis]} are expected")
    shape = (*x.shape[:axis], most, *x.shape[axis + 1 :])
    return [Value(shape, x.dtype), Value(shape, WHOLE)]


def _top(settings: Settings, x: Array, k: Array) -> tuple[Array, Array]:
    axis, most = settings["axis"], int(k.reshape(-1)[0])
    if x.dtype.kind != "f":
        x = x.astype(np.int64, copy=False)
    order = np.argsort(-x if settings["largest"] else x, axis=axis, kind="stable")
    places = np.take(order, np.arange(most), axis=axis)
    return np.take_along_axis(x, places, axis), places


OPERATIONS = {
    "ReduceMax": _reduce(lambda x, axes, keep: np.max(x, axis=axes, keepdims=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: np.min(x, axis=axes, keepdims=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: np.mean(x, axis=axes, keepdims=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: np.sum(x, axis=axes, keepdims=keep)),
    "ReduceProd": _reduce(lambda x, axes, keep: np.prod(x, axis=axes, keepdims=keep)),
    "ReduceL1": _reduce(lambda x, axes, keep: np.sum(np.abs(x), axis=axes, keepdims=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: np.sqrt(np.sum(np.square(x), axis=axes, keepdims=keep))),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: np.sum(np.square(x), axis=axes, keepdims=keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: np.log(np.sum(x, axis=axes, keepdims=keep))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ArgMax": _place(np.argmax),
    "ArgMin": _place(np.argmin),
    "Softmax": Operation(_along, lambda settings, x: softmax(x, settings["axis"]), settings={"axis": AXIS}),
    "LogSoftmax": Operation(_along, _log_softmax, settings={"axis": AXIS}),
    "LpNormalization": Operation(
        _along,
        lambda settings, x: (
            x
            / np.maximum(
                np.sum(np.abs(x) ** settings["p"], axis=settings["axis"], keepdims=True)
                ** (1 / settings["p"]),
                np.float32(1e-30),
            ).astype(np.float32)
        ),
        settings={"axis": AXIS, "p": whole(2, 1, 2)},
    ),
    "CumSum": Operation(_running_rule, _running, (2, 2), {"exclusive": flag(), "reverse": flag()}),
    "TopK": Operation(
        _top_rule, _top, (2, 2), {"axis": AXIS, "largest": flag(1), "sorted": flag(1)}, outputs=2
    ),
    "Hardmax": Operation(
        _along,
        lambda settings, x: (
            np.expand_dims(np.argmax(x, settings["axis"]), settings["axis"])
            == np.arange(x.shape[settings["axis"]]).reshape(
                [-1 if axis == settings["axis"] % x.ndim else 1 for axis in range(x.ndim)]
            )
        ).astype(np.float32),
        settings={"axis": AXIS},
    ),
}
