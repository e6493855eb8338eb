"""Normalisations, each over its own axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchswat.runtime.operations.rows import (
    AXIS,
    FLOAT,
    Operation,
    Settings,
    Value,
    axis_of,
    broadcast_shape,
    floats,
    real,
    whole,
)

Array = np.ndarray


def _channels(settings: Settings, x: Value, *others: Value) -> Value:
    floats(x, *others)
    if len(x.shape) < 2 or any(value.shape != x.shape[1:2] for value in others):
        raise ValueError(
            f"{', '.join(str(value.shape) for value in others)} do not fit the channels of {x.shape}"
        )
    return Value(x.shape, FLOAT)


def _per_channel(values: Array, rank: int) -> Array:
    return values.reshape(-1, *(1,) * (rank - 2))


def batch_scale(
    settings: Settings, scale: Array, bias: Array, mean: Array, variance: Array
) -> tuple[Array, Array]:
    """Return what a batch norm multiplies a channel with and what it adds, in float64."""
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + settings["epsilon"])
    return factor, bias - mean * factor


def _batch(settings: Settings, x: Array, *values: Array) -> Array:
    factor, shift = (_per_channel(each, x.ndim).astype(np.float32) for each in batch_scale(settings, *values))
    y = x * factor
    y += shift
    return y


def _normalised(x: Array, axes: Sequence[int] | int, epsilon: float) -> Array:
    axes = tuple(axes) if not isinstance(axes, int) else axes
    y = x - np.mean(x, axis=axes, keepdims=True)
    variance = np.mean(np.square(y), axis=axes, keepdims=True)
    variance += np.float32(epsilon)
    np.sqrt(variance, out=variance)
    y /= variance
    return y


def _scaled(y: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        y *= scale
    if bias is not None:
        y += bias
    return y


def _layer_rule(settings: Settings, x: Value, scale: Value | None = None, bias: Value | None = None) -> Value:
    floats(x, scale, bias)
    axis_of(settings["axis"], len(x.shape))
    for value in (scale, bias):
        if value is not None and broadcast_shape(x.shape, value.shape) != x.shape:
            raise ValueError(f"a scale or bias of shape {value.shape} does not fit {x.shape}")
    return Value(x.shape, FLOAT)


def _layer(settings: Settings, x: Array, scale: Array | None = None, bias: Array | None = None) -> Array:
    axes = range(settings["axis"] % x.ndim, x.ndim)
    return _scaled(_normalised(x, axes, settings["epsilon"]), scale, bias)


def _rms(settings: Settings, x: Array, scale: Array | None = None) -> Array:
    axes = tuple(range(settings["axis"] % x.ndim, x.ndim))
    mean = np.mean(np.square(x), axis=axes, keepdims=True) + np.float32(settings["epsilon"])
    return _scaled(x / np.sqrt(mean), scale, None)


def _group_rule(settings: Settings, x: Value, scale: Value, bias: Value) -> Value:
    groups = settings["num_groups"]
    if len(x.shape) < 2 or x.shape[1] % groups:
        raise ValueError(f"the channels of {x.shape} do not make {groups} groups")
    return _channels(settings, x, scale, bias)


def _group(settings: Settings, x: Array, scale: Array, bias: Array) -> Array:
    y = x.reshape(len(x), settings["num_groups"], -1)
    y = _normalised(y, 2, settings["epsilon"]).reshape(x.shape)
    return _scaled(y, _per_channel(scale, x.ndim), _per_channel(bias, x.ndim))


def _instance(settings: Settings, x: Array, scale: Array, bias: Array) -> Array:
    y = _normalised(x, range(2, x.ndim), settings["epsilon"])
    return _scaled(y, _per_channel(scale, x.ndim), _per_channel(bias, x.ndim))


def _local_rule(settings: Settings, x: Value) -> Value:
    return _channels(settings, x)


def _local(settings: Settings, x: Array) -> Array:
    size, channels = settings["size"], x.shape[1]
    squares = np.square(x)
    total = np.concatenate([np.zeros_like(squares[:, :1]), np.cumsum(squares, 1, dtype=np.float32)], 1)
    low = np.maximum(0, np.arange(channels) - (size - 1) // 2)
    high = np.minimum(channels, np.arange(channels) + size // 2 + 1)
    near = total[:, high] - total[:, low]
    return x / (settings["bias"] + settings["alpha"] / size * near) ** np.float32(settings["beta"])


_EPSILON = {"epsilon": real(1e-5, 0, 1e6)}

OPERATIONS = {
    "BatchNormalization": Operation(_channels, _batch, (5, 5), _EPSILON),
    "LayerNormalization": Operation(_layer_rule, _layer, (1, 3), {**_EPSILON, "axis": AXIS}, (1,)),
    "RMSNormalization": Operation(_layer_rule, _rms, (1, 2), {**_EPSILON, "axis": AXIS}),
    "GroupNormalization": Operation(
        _group_rule, _group, (3, 3), {**_EPSILON, "num_groups": whole(1, 1, 2**20)}
    ),
    "InstanceNormalization": Operation(_channels, _instance, (3, 3), _EPSILON),
    "LRN": Operation(
        _local_rule,
        _local,
        settings={
            "size": whole(5, 1, 2**20),
            "alpha": real(1e-4),
            "beta": real(0.75),
            "bias": real(1.0, 1e-9),
        },
    ),
}
