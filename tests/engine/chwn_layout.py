"""Tensors with samples innermost in memory, as the native kernels take them, and their bitmasks."""

from __future__ import annotations

import torch

CACHED_FLOATS = 1 << 21
"""Results of more floats are written past the cache (stream.h)."""


def chwn(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, C, H, W) with samples innermost in memory: strides (1, H*W*N, W*N, N)."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def empty_chwn(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return an uninitialised tensor of `size` (N, C, H, W) with samples innermost."""
    n, c, h, w = size
    return torch.empty(c, h, w, n, dtype=dtype).permute(3, 0, 1, 2)


def unpack_bits(words: torch.Tensor, channels: int, length: int) -> torch.Tensor:
    """Return the bitmask (C, ceil(length / 64)) int64 as booleans (C, length), lowest bit first."""
    bits = (words.view(channels, -1, 1) >> torch.arange(64)) & 1
    return bits.reshape(channels, -1)[:, :length].bool()
