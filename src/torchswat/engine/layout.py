"""The CHWN layout: activations (N, C, H, W) whose memory is [C][H][W][N], and copies into it and out of it.

Every tap of a convolution is one aligned vector of samples there, elementwise operations of torch keep its strides,
a 1x1 convolution is a plain matrix product, and a channel is one stretch of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from torchswat.engine.loader import ENTRIES, kernel_for, native_for_entries

NCHW, CHANNELS_LAST, CHWN = range(3)


def is_chwn(x: Tensor) -> bool:
    """Return whether `x`, (N, C, H, W), lies in memory as [C][H][W][N]."""
    if x.dim() != 4:
        return False
    n, c, h, w = x.shape
    by_n, by_c, by_h, by_w = x.stride()  # a dimension of one entry may have any
    return (
        (n == 1 or by_n == 1)
        and (w == 1 or by_w == n)
        and (h == 1 or by_h == w * n)
        and (c == 1 or by_c == h * w * n)
    )


def layout_of(x: Tensor) -> int:
    """Return which of the three layouts `x`, (N, C, H, W), has; what is in none counts as NCHW."""
    if x.is_contiguous():
        return NCHW
    if is_chwn(x):
        return CHWN
    return CHANNELS_LAST if x.is_contiguous(memory_format=torch.channels_last) else NCHW


def chwn_strides(size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the strides of a CHWN tensor of this size (N, C, H, W)."""
    n, _, h, w = size
    return 1, h * w * n, w * n, n


def empty_chwn(size: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised CHWN tensor of `size` (N, C, H, W), of the dtype and device of `like`.

    It is no view: one that a custom function returned could not be changed in place.
    """
    return torch.empty_strided(size, chwn_strides(size), dtype=dtype or like.dtype, device=like.device)


def empty_in(layout: int, size: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor of `size` in one of the three layouts."""
    if layout == CHWN:
        return empty_chwn(size, like, dtype)
    dtype, memory = dtype or like.dtype, torch.contiguous_format
    if layout == CHANNELS_LAST and len(size) == 4:
        memory = torch.channels_last
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=memory)


def empty_channels_last(size: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised channels-last tensor for a convolution of torch."""
    # One channel is the same memory in both formats, but with the strides of channels_last some strided
    # convolutions of torch 2.13 give wrong numbers (input 2x1x2x1, kernel 1x7, stride 1x2, two threads).
    return empty_in(CHANNELS_LAST if size[1] > 1 else NCHW, size, like)


def as_chwn(x: Tensor, native: ModuleType | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), in the CHWN layout: itself where it is that already. Not differentiable."""
    return x if is_chwn(x) else copy_to_chwn(x, native)


def _copier(x: Tensor, native: ModuleType | None) -> ModuleType | None:
    return native if native is not None and x.dtype in ENTRIES else native_for_entries(x)


def copy_to_chwn(x: Tensor, native: ModuleType | None = None) -> Tensor:
    """Return a CHWN copy of `x`, (N, C, H, W). Not differentiable; `native` may be given where it is known."""
    result = empty_chwn(x.shape, x)
    native = _copier(x, native)
    if native is None:
        return result.copy_(x)
    h, w = x.shape[2:]
    by_sample, by_channel, by_row, by_position = x.stride()
    to = result.data_ptr(), *x.shape, torch.get_num_threads()
    if (by_channel, by_row, by_position) == (h * w, w, 1):  # NCHW, or channels out of it
        kernel_for(native, "nchw_to_chwn", x)(x.data_ptr(), by_sample, *to)
    elif (by_sample, by_channel, by_row) == (h * w * by_position, 1, w * by_position):
        kernel_for(native, "channels_last_to_chwn", x)(x.data_ptr(), by_position, *to)
    else:
        result.copy_(x)
    return result


def copy_to_nchw(x: Tensor, native: ModuleType | None = None) -> Tensor:
    """Return a contiguous copy of a CHWN `x`, (N, C, H, W). Not differentiable."""
    result = empty_in(NCHW, x.shape, x)
    native = _copier(x, native)
    if native is None or not is_chwn(x):
        return result.copy_(x)
    kernel_for(native, "chwn_to_nchw", x)(x.data_ptr(), result.data_ptr(), *x.shape, torch.get_num_threads())
    return result


def copy_to_channels_last(x: Tensor, native: ModuleType | None = None) -> Tensor:
    """Return a channels-last copy of a CHWN `x`, (N, C, H, W). Not differentiable."""
    result = empty_channels_last(x.shape, x)
    native = _copier(x, native)
    if native is None or not is_chwn(x):
        return result.copy_(x)
    kernel_for(native, "chwn_to_channels_last", x)(
        x.data_ptr(), result.data_ptr(), *x.shape, torch.get_num_threads()
    )
    return result


def copy_from_chwn(x: Tensor, layout: int, native: ModuleType | None = None) -> Tensor:
    """Return a CHWN `x` in another layout. Not differentiable."""
    if layout == CHWN:
        return x
    if layout == CHANNELS_LAST:
        return copy_to_channels_last(x, native) if x.shape[1] > 1 else copy_to_nchw(x, native)
    return copy_to_nchw(x, native)
