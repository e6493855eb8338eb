"""Resizing along any axes, by nearest neighbours, lines or cubics."""

from __future__ import annotations

import numpy as np

from torchswat.runtime.operations.rows import (
    FLOAT,
    LARGEST,
    Operation,
    Settings,
    Shape,
    Value,
    axes_of,
    choice,
    flag,
    known,
    real,
    wholes,
)

Array = np.ndarray


def _axes(settings: Settings, rank: int) -> tuple[int, ...]:
    return axes_of(settings["axes"], rank) if settings["axes"] else tuple(range(rank))


def _plan(
    settings: Settings, shape: Shape, scales: list[float] | None, sizes: list[int] | None
) -> tuple[list[int], list[float]]:
    """Return the new size of each axis that is resized, and its scale."""
    axes = _axes(settings, len(shape))
    given = sizes if sizes is not None else scales
    if given is None or len(given) != len(axes):
        raise ValueError(f"a scale or a size for each of {len(axes)} axes is expected, not {given}")
    if sizes is not None:
        made = list(map(int, sizes))
        ratios = [size / max(1, shape[axis]) for size, axis in zip(made, axes, strict=True)]
    else:
        assert scales is not None
        # float32 scales such as 1 / 3 are a little off: what is meant is the whole number nearby.
        ratios = [float(scale) for scale in scales]
        made = [int(np.floor(shape[axis] * ratio + 1e-4)) for axis, ratio in zip(axes, ratios, strict=True)]
    if any(not 0 < size <= LARGEST for size in made) or any(not 0 < r < 1e6 for r in ratios):
        raise ValueError(f"a size of {made} is not allowed")
    if any(not shape[axis] for axis in axes):
        raise ValueError(f"nothing can be made of {shape}")
    return made, ratios


def _rule(settings: Settings, x: Value, scales: Value | None = None, sizes: Value | None = None) -> Value:
    lists = [None if each is None else known(each, "sizes") for each in (scales, sizes)]
    if settings["mode"] != "nearest" and x.dtype != FLOAT:
        raise ValueError(f"an input is {x.dtype}; float32 is expected")
    made, _ = _plan(settings, x.shape, *lists)
    shape = list(x.shape)
    for axis, size in zip(_axes(settings, len(shape)), made, strict=True):
        shape[axis] = size
    return Value(tuple(shape), x.dtype)


def _places(settings: Settings, size: int, new: int, scale: float) -> Array:
    """Return where each new entry lies among the old ones."""
    at, how = np.arange(new, dtype=np.float64), settings["coordinates"]
    if how == "align_corners":
        return at * ((size - 1) / (new - 1)) if new > 1 else at * 0
    if how == "asymmetric":
        return at / scale
    if how == "pytorch_half_pixel" and new == 1:
        return at * 0
    places = (at + 0.5) / scale - 0.5
    if how == "half_pixel_symmetric":
        places += size / 2 * (1 - new / (size * scale))
    return places


_ROUND = {
    "floor": lambda at: np.floor(at + 1e-6),
    "ceil": lambda at: np.ceil(at - 1e-6),
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
}


def _cubic(distance: Array, a: float) -> Array:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _along(settings: Settings, x: Array, axis: int, new: int, scale: float) -> Array:
    size = x.shape[axis]
    at = _places(settings, size, new, scale)
    if settings["mode"] == "nearest":
        places = np.clip(_ROUND[settings["nearest"]](at), 0, size - 1).astype(np.int64)
        return np.take(x, places, axis)
    first = np.floor(at).astype(np.int64)
    if settings["mode"] == "linear":
        taps, weights = (0, 1), [1 - (at - first), at - first]
    else:
        taps = (-1, 0, 1, 2)
        weights = [_cubic(at - first - tap, settings["cubic_coeff_a"]) for tap in taps]
    if settings["exclude_outside"]:
        weights = [
            w * ((first + tap >= 0) & (first + tap < size)) for tap, w in zip(taps, weights, strict=True)
        ]
        total = sum(weights)
        weights = [w / total for w in weights]
    shape = [-1 if each == axis else 1 for each in range(x.ndim)]
    y = None
    for tap, weight in zip(taps, weights, strict=True):
        part = np.take(x, np.clip(first + tap, 0, size - 1), axis)
        part *= weight.astype(np.float32).reshape(shape)
        y = part if y is None else np.add(y, part, out=y)
    assert y is not None
    return y


def _resize(settings: Settings, x: Array, scales: Array | None = None, sizes: Array | None = None) -> Array:
    made, ratios = _plan(
        settings, x.shape, *(None if each is None else each.tolist() for each in (scales, sizes))
    )
    for axis, size, scale in zip(_axes(settings, x.ndim), made, ratios, strict=True):
        if (size, scale) != (x.shape[axis], 1):
            x = _along(settings, x, axis, size, scale)
    return x


OPERATIONS = {
    "Resize": Operation(
        _rule,
        _resize,
        (2, 3),
        {
            "mode": choice("nearest", "linear", "cubic"),
            "coordinates": choice(
                "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"
            ),
            "nearest": choice(*_ROUND),
            "cubic_coeff_a": real(-0.75, -10, 10),
            "exclude_outside": flag(),
            "axes": wholes((), 0, 11),
        },
        optional=(1,),
        is_view=True,
    ),
}
