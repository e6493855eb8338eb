"""Convolutions and pools: windows that slide along one, two or three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from torchswat.runtime.operations.rows import (
    FLOAT,
    Operation,
    Settings,
    Shape,
    Value,
    choice,
    count,
    flag,
    floats,
    whole,
    wholes,
)

Array = np.ndarray
Pads = list[tuple[int, int]]

LARGEST_COLUMNS = 2**24  # entries of the unfolded input of an image; beyond it taps are added one by one


def pads_of(settings: Settings, sizes: Shape, kernel: Sequence[int]) -> Pads:
    """Return how many zeros lie before and behind each axis."""
    rank = len(sizes)
    if settings["auto_pad"] == "none":
        return list(zip(settings["pads"][:rank], settings["pads"][rank:], strict=True))
    found: Pads = []
    for size, width, stride, step in zip(
        sizes, kernel, settings["strides"], settings["dilations"], strict=True
    ):
        missing = max(0, (-(-size // stride) - 1) * stride + (width - 1) * step + 1 - size)
        less, more = missing // 2, missing - missing // 2
        found.append((less, more) if settings["auto_pad"] == "same_upper" else (more, less))
    return found


def _check_window(settings: Settings, rank: int, kernel: Sequence[int]) -> None:
    lists = {"strides": rank, "dilations": rank, "pads": 2 * rank}
    for name, length in lists.items():
        if name in settings and len(settings[name]) != length:
            raise ValueError(f"{name} has {len(settings[name])} numbers; {length} are expected")
    if len(kernel) != rank or not 0 < rank <= 3:
        raise ValueError(f"a window of {tuple(kernel)} does not fit {rank} axes")


def _windows(size: int, width: int, stride: int, step: int, pads: tuple[int, int], ceil: int = 0) -> int:
    """Return how many windows fit; with `ceil` none that begins in the padding behind."""
    reach = (width - 1) * step + 1
    free = size + sum(pads) - reach
    number = (free + (stride - 1) * ceil) // stride + 1
    number -= ceil and (number - 1) * stride >= size + pads[0]
    if number < 1 or width < 1 or (free < 0 and not ceil):
        raise ValueError(f"a window of {reach} does not fit {size} entries with {sum(pads)} around")
    return number


def _sizes(settings: Settings, sizes: Shape, kernel: Sequence[int]) -> Shape:
    pads, ceil = pads_of(settings, sizes, kernel), settings.get("ceil_mode", 0)
    rows = zip(sizes, kernel, settings["strides"], settings["dilations"], pads, strict=True)
    return tuple(_windows(*row, ceil) for row in rows)


# ---- convolutions ------------------------------------------------------------------------------------------


def _check_weight(x: Value, weight: Value, bias: Value | None, group: int, transposed: bool) -> int:
    """Return the number of channels of the result."""
    floats(x, weight, bias)
    rank = len(x.shape) - 2
    if not 0 < rank <= 3 or len(weight.shape) != rank + 2:
        raise ValueError(f"a weight {weight.shape} does not fit an input {x.shape}")
    per_group = weight.shape[1]
    read = weight.shape[0] if transposed else per_group * group
    channels = per_group * group if transposed else weight.shape[0]
    if read != x.shape[1] or channels % group or read % group or not channels:
        raise ValueError(f"the weight {weight.shape} in {group} groups does not fit {x.shape[1]} channels")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"the bias {bias.shape} does not fit {channels} channels")
    return channels


def _conv_rule(settings: Settings, x: Value, weight: Value, bias: Value | None = None) -> Value:
    channels = _check_weight(x, weight, bias, settings["group"], transposed=False)
    kernel = weight.shape[2:]
    _check_window(settings, len(x.shape) - 2, kernel)
    return Value((x.shape[0], channels, *_sizes(settings, x.shape[2:], kernel)), FLOAT)


def padded(x: Array, pads: Pads, fill: float = 0) -> Array:
    """Return `x` with entries around its last axes; negative numbers cut."""
    if not any(low or high for low, high in pads):
        return x
    lead = x.ndim - len(pads)
    cut = (
        slice(max(0, -low), size - max(0, -high))
        for size, (low, high) in zip(x.shape[lead:], pads, strict=True)
    )
    x = x[(..., *cut)]
    both = [(0, 0)] * lead + [(max(0, low), max(0, high)) for low, high in pads]
    return np.pad(x, both, constant_values=fill)


def convolve(
    x: Array, weight: Array, bias: Array | None, strides: Sequence[int], steps: Sequence[int], group: int
) -> Array:
    """Return the convolution of `x`, (N, C, ...), that is padded already."""
    kernel, n = weight.shape[2:], len(x)
    sizes = [
        (size - (width - 1) * step - 1) // stride + 1
        for size, width, stride, step in zip(x.shape[2:], kernel, strides, steps, strict=True)
    ]
    x = x.reshape(n, group, x.shape[1] // group, *x.shape[2:])
    w = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    if x.shape[2] == w.shape[1] == 1 or count((*x.shape[2:3], *kernel, *sizes)) * group > LARGEST_COLUMNS:
        y = _by_taps(x, w, kernel, strides, steps, sizes)
    else:
        moves = [s * d for s, d in zip(x.strides[3:], steps, strict=True)]
        jumps = [s * d for s, d in zip(x.strides[3:], strides, strict=True)]
        columns = as_strided(x, (*x.shape[:3], *kernel, *sizes), (*x.strides[:3], *moves, *jumps))
        columns = columns.reshape(n, group, x.shape[2] * count(kernel), count(sizes))
        y = np.matmul(w.reshape(group, w.shape[1], -1), columns)
    y = y.reshape(n, weight.shape[0], *sizes)
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(sizes))
    return y


def _by_taps(
    x: Array, w: Array, kernel: Shape, strides: Sequence[int], steps: Sequence[int], sizes: Sequence[int]
) -> Array:
    y = np.zeros((len(x), x.shape[1], w.shape[1], *sizes), np.float32)
    one = x.shape[2] == w.shape[1] == 1
    for tap, place in enumerate(np.ndindex(*kernel)):
        rows = zip(place, strides, steps, sizes, strict=True)
        seen = x[(..., *(slice(p * d, p * d + s * (m - 1) + 1, s) for p, s, d, m in rows))]
        if one:
            y += seen * w[:, :, 0, tap].reshape(-1, 1, *(1,) * len(sizes))
        else:
            flat = seen.reshape(*seen.shape[:3], count(sizes))
            y += np.matmul(w[..., tap], flat).reshape(y.shape)
    return y


def _conv(settings: Settings, x: Array, weight: Array, bias: Array | None = None) -> Array:
    x = padded(x, pads_of(settings, x.shape[2:], weight.shape[2:]))
    return convolve(x, weight, bias, settings["strides"], settings["dilations"], settings["group"])


def transposed_sizes(settings: Settings, sizes: Shape, kernel: Shape) -> tuple[Shape, Pads]:
    """Return the sizes of a transposed convolution's result, and the padding of its input with gaps."""
    rows = zip(
        sizes, kernel, settings["strides"], settings["dilations"], settings["output_padding"], strict=True
    )
    found: list[int] = []
    pads: Pads = []
    for at, (size, width, stride, step, extra) in enumerate(rows):
        reach = (width - 1) * step
        whole_size = stride * (size - 1) + reach + 1 + extra
        if settings["auto_pad"] == "none":
            low, high = settings["pads"][at], settings["pads"][at + len(sizes)]
        else:
            missing = max(0, whole_size - size * stride)
            low = missing // 2 if settings["auto_pad"] == "same_upper" else missing - missing // 2
            high = missing - low
        found.append(whole_size - low - high)
        pads.append((reach - low, reach - high + extra))
    return tuple(found), pads


def with_gaps(x: Array, strides: Sequence[int], pads: Pads) -> Array:
    """Return `x` with zeros between neighbours and around."""
    if any(stride > 1 for stride in strides):
        sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], strides, strict=True)]
        y = np.zeros((*x.shape[:2], *sizes), x.dtype)
        y[(..., *(slice(None, None, stride) for stride in strides))] = x
        x = y
    return padded(x, pads)


def turned(weight: Array, group: int) -> Array:
    """Return the weight, (C, K / group, ...), of the convolution that a transposed one is."""
    c, k, *kernel = weight.shape
    w = weight.reshape(group, c // group, k, *kernel).swapaxes(1, 2).reshape(group * k, c // group, *kernel)
    return np.flip(w, tuple(range(2, w.ndim)))


def _transpose_rule(settings: Settings, x: Value, weight: Value, bias: Value | None = None) -> Value:
    channels = _check_weight(x, weight, bias, settings["group"], transposed=True)
    _check_window(settings, len(x.shape) - 2, weight.shape[2:])
    if len(settings["output_padding"]) != len(x.shape) - 2 or not all(x.shape[2:]):
        raise ValueError(f"output_padding {settings['output_padding']} does not fit {x.shape}")
    sizes, _ = transposed_sizes(settings, x.shape[2:], weight.shape[2:])
    if any(size < 1 for size in sizes):
        raise ValueError(f"nothing is left of {x.shape}")
    return Value((x.shape[0], channels, *sizes), FLOAT)


def _conv_transpose(settings: Settings, x: Array, weight: Array, bias: Array | None = None) -> Array:
    _, pads = transposed_sizes(settings, x.shape[2:], weight.shape[2:])
    weight, ones = turned(weight, settings["group"]), [1] * (x.ndim - 2)
    x = with_gaps(x, settings["strides"], pads)
    return convolve(x, weight, bias, ones, settings["dilations"], settings["group"])


# ---- pools -------------------------------------------------------------------------------------------------


def _pool_rule(settings: Settings, x: Value) -> Value:
    floats(x)
    kernel = settings["kernel_shape"]
    _check_window(settings, len(x.shape) - 2, kernel)
    pads = pads_of(settings, x.shape[2:], kernel)
    if any(
        max(both) >= max(1, (width - 1) * step + 1)
        for both, width, step in zip(pads, kernel, settings["dilations"], strict=True)
    ):
        raise ValueError(f"a padding of {pads} is not smaller than the window {tuple(kernel)}")
    return Value((*x.shape[:2], *_sizes(settings, x.shape[2:], kernel)), FLOAT)


def _slide(settings: Settings, x: Array, sizes: Shape, function: Any, fill: float) -> Array:
    """Combine the entries of windows, one axis after the other."""
    kernel, lead = settings["kernel_shape"], x.ndim - len(sizes)
    pads = pads_of(settings, x.shape[lead:], kernel)
    rows = zip(kernel, settings["strides"], settings["dilations"], sizes, pads, strict=True)
    for axis, (width, stride, step, number, (low, _)) in enumerate(rows, start=lead):
        high = max(0, (number - 1) * stride + (width - 1) * step + 1 - low - x.shape[axis])
        both = [(0, 0)] * x.ndim
        both[axis] = low, high
        x = np.pad(x, both, constant_values=fill) if low or high else x
        if width == 1 and stride == 1:
            continue
        result = None
        for tap in range(width):
            span = slice(tap * step, tap * step + (number - 1) * stride + 1, stride)
            seen = x[(*(slice(None),) * axis, span)]
            result = seen.copy("K") if result is None else function(result, seen, out=result)
        assert result is not None
        x = result
    return x


def _max_pool(settings: Settings, x: Array) -> Array:
    sizes = _sizes(settings, x.shape[2:], settings["kernel_shape"])
    return _slide(settings, x, sizes, np.maximum, -np.inf)


def _average_pool(settings: Settings, x: Array) -> Array:
    space = x.shape[2:]
    sizes = _sizes(settings, space, settings["kernel_shape"])
    total = _slide(settings, x, sizes, np.add, 0)
    pads = pads_of(settings, space, settings["kernel_shape"])
    counted = padded(np.ones(space, np.float32), pads, float(settings["count_include_pad"]))
    inside = {**settings, "pads": (0,) * 2 * len(space), "auto_pad": "none"}
    return total / _slide(inside, counted, sizes, np.add, 0)


def _power_pool(settings: Settings, x: Array) -> Array:
    sizes, p = _sizes(settings, x.shape[2:], settings["kernel_shape"]), settings["p"]
    return _slide(settings, np.abs(x) ** np.float32(p), sizes, np.add, 0) ** np.float32(1 / p)


def _adaptive_rule(settings: Settings, x: Value) -> Value:
    floats(x)
    sizes = settings["sizes"]
    if not 0 < len(sizes) <= 3 or len(x.shape) < len(sizes) + 1 or not all(x.shape[-len(sizes) :]):
        raise ValueError(f"{len(sizes)} sizes do not fit {x.shape}")
    return Value((*x.shape[: -len(sizes)], *sizes), FLOAT)


def _adaptive(function: Callable[..., Array]) -> Callable[[Settings, Array], Array]:
    """Return a body: window i of m reaches from floor(i * n / m) to ceil((i + 1) * n / m)."""

    def body(settings: Settings, x: Array) -> Array:
        lead = x.ndim - len(settings["sizes"])
        for axis, number in enumerate(settings["sizes"], start=lead):
            size = x.shape[axis]
            if size % number == 0:
                shape = *x.shape[:axis], number, size // number, *x.shape[axis + 1 :]
                x = function(x.reshape(shape), axis=axis + 1)
                continue
            starts = [at * size // number for at in range(number)]
            ends = [-(-(at + 1) * size // number) for at in range(number)]
            parts = [
                function(x[(*(slice(None),) * axis, slice(start, end))], axis=axis, keepdims=True)
                for start, end in zip(starts, ends, strict=True)
            ]
            x = np.concatenate(parts, axis)
        return x

    return body


_STEPS = wholes((1, 1), 1, 2**20)
_EDGES = wholes((0, 0, 0, 0), 0, 2**20)
_AUTO = choice("none", "same_upper", "same_lower")
_WINDOW = {
    "kernel_shape": wholes((1, 1), 1, 2**16),
    "strides": _STEPS,
    "dilations": _STEPS,
    "pads": _EDGES,
    "auto_pad": _AUTO,
    "ceil_mode": flag(),
}
_CONV = {
    "strides": _STEPS,
    "dilations": _STEPS,
    "pads": _EDGES,
    "auto_pad": _AUTO,
    "group": whole(1, 1, 2**20),
}

OPERATIONS = {
    "Conv": Operation(_conv_rule, _conv, (2, 3), _CONV),
    "ConvTranspose": Operation(
        _transpose_rule, _conv_transpose, (2, 3), {**_CONV, "output_padding": wholes((0, 0), 0, 2**20)}
    ),
    "MaxPool": Operation(_pool_rule, _max_pool, settings=_WINDOW, is_view=True),
    "AveragePool": Operation(_pool_rule, _average_pool, settings={**_WINDOW, "count_include_pad": flag()}),
    "LpPool": Operation(_pool_rule, _power_pool, settings={**_WINDOW, "p": whole(2, 1, 9)}),
    "AdaptiveAveragePool": Operation(
        _adaptive_rule, _adaptive(np.mean), settings={"sizes": wholes((1, 1), 1, 2**16)}
    ),
    "AdaptiveMaxPool": Operation(
        _adaptive_rule, _adaptive(np.max), settings={"sizes": wholes((1, 1), 1, 2**16)}
    ),
}
"""``pads`` are zeros before each axis, then those behind each."""
