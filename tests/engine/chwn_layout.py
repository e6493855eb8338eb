"""Tensors with samples innermost in memory, as the native kernels take them, and their bitmasks."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

CACHED_FLOATS = 1 << 21
"""Results of more floats are written past the cache (stream.h)."""

DTYPES = [torch.float32, torch.bfloat16]
"""Of the entries of activations, where a kernel takes both."""


def kernel(native: ModuleType, name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Return the kernel `name` for entries of `dtype`."""
    return getattr(native, name if dtype == torch.float32 else f"{name}_bf16")


def rounding(dtype: torch.dtype) -> float:
    """Return by how much of itself a result of `dtype` may be off the same in float32."""
    return 0.0 if dtype == torch.float32 else 2.0**-8


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
