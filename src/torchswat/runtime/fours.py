"""Numbers of 8 bits, four neighbouring channels side by side: how activations and weights of int8 products lie.

    X   [ceil(C / 4)][H][W][N][4]   uint8; what a byte stands for is (byte - zero) * scale
    W   [K][ceil(C / 4)][R][S]      four int8 in 32 bits, the first channel lowest

Channels that are missing to a multiple of four are zeros.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
FOUR = 4


def groups(channels: int) -> int:
    """Return how many fours hold so many channels."""
    return -(-channels // FOUR)


def to_fours(x: Array) -> Array:
    """Return bytes (N, C, ...) as fours (ceil(C / 4), ..., N, 4).

    Examples
    --------
    >>> to_fours(np.arange(10, dtype=np.uint8).reshape(2, 5, 1)).shape
    (2, 1, 2, 4)
    """
    n, c, *space = x.shape
    whole = np.zeros((n, groups(c) * FOUR, *space), np.uint8)
    whole[:, :c] = x
    whole = whole.reshape(n, groups(c), FOUR, *space)
    return np.ascontiguousarray(np.moveaxis(whole, (0, 2), (-2, -1)))


def from_fours(fours: Array, channels: int) -> Array:
    """Return fours as bytes (N, C, ...)."""
    whole = np.moveaxis(fours, (-2, -1), (0, 2))
    return whole.reshape(len(whole), -1, *whole.shape[3:])[:, :channels]


def weight_fours(weight: Array) -> Array:
    """Return a weight (K, C, R, S) of int8 as fours (K, ceil(C / 4), R, S) in int32."""
    k, c, *kernel = weight.shape
    whole = np.zeros((k, groups(c) * FOUR, *kernel), np.int8)
    whole[:, :c] = weight
    whole = np.moveaxis(whole.reshape(k, groups(c), FOUR, *kernel), 2, -1)
    return np.ascontiguousarray(whole).view(np.int32)[..., 0]
