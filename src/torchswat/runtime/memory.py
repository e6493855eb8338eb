"""Memory for the kernels: aligned, and results of a network in one block."""

from __future__ import annotations

import mmap

import numpy as np

from torchswat.runtime.arena import ALIGNMENT


def empty(entries: int, dtype: type = np.float32) -> np.ndarray:
    """Return an uninitialised row that begins at a multiple of `ALIGNMENT` bytes."""
    size = np.dtype(dtype).itemsize
    raw = np.empty(entries * size + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + entries * size].view(dtype)


def lazy(entries: int, dtype: type) -> np.ndarray:
    """Return a row of zeros whose pages are taken when they are written to: much of it may never be."""
    if entries < 2**16:
        return empty(entries, dtype)
    return np.frombuffer(mmap.mmap(-1, entries * np.dtype(dtype).itemsize), dtype)


def address(array: np.ndarray) -> int:
    """Return where an array lies."""
    return array.__array_interface__["data"][0]


def aligned(array: np.ndarray) -> np.ndarray:
    """Return float32 entries in order, at an aligned address."""
    result = empty(array.size)
    result[:] = array.reshape(-1)
    return result.reshape(array.shape)


def chwn(block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a row as an array of `shape`, (N, C, ...), that lies in memory as [C][...][N]."""
    return np.moveaxis(block.reshape(*shape[1:], shape[0]), -1, 0)


def is_chwn(array: np.ndarray) -> bool:
    """Return whether `array`, (N, C, ...), lies in memory as [C][...][N]."""
    return bool(np.moveaxis(array, 0, -1).flags.c_contiguous)


def laid(block: np.ndarray, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """Return a row as an array of `shape` whose axes lie in memory in `order`, the outermost first."""
    places = sorted(range(len(order)), key=order.__getitem__)
    return block.reshape([shape[axis] for axis in order]).transpose(places)


def order_of(array: np.ndarray) -> tuple[int, ...]:
    """Return the axes as they lie in memory, the outermost first."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


def lies_in(array: np.ndarray, order: tuple[int, ...]) -> bool:
    """Return whether the axes lie in memory in `order`, without gaps."""
    return bool(array.transpose(order).flags.c_contiguous)
