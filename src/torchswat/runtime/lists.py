"""The kept weights of a convolution, in the order in which a kernel walks through them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from torchswat.runtime.memory import address, aligned, empty, lazy


@dataclass(frozen=True, eq=False)
class Lists:
    """Where each list starts (int32), and the values (float32, or fours) and offsets (int16) of all of them."""

    starts: np.ndarray
    values: np.ndarray
    offsets: np.ndarray

    def addresses(self) -> tuple[int, int, int]:
        """Return where the three lie, as kernels take them."""
        return address(self.starts), address(self.values), address(self.offsets)


FORWARD = 0


def for_samples(
    native: ModuleType, shape: Any, weight: np.ndarray, steps: tuple[int, int], threads: int
) -> Lists:
    """Return the lists that ``conv_forward_fused`` takes: of use for any number of samples."""
    weight = with_gaps(weight, steps)
    if not weight.flags.c_contiguous:  # that of a transposed convolution is turned
        weight = aligned(weight)
    nowhere = native.PackedWeights()
    return _packed(
        native,
        shape,
        lambda to: native.pack_weights(shape, address(weight), 0, 0.0, to, nowhere, 0, threads),
    )


def fours_for_samples(native: ModuleType, shape: Any, weight: np.ndarray, threads: int) -> Lists:
    """Return the lists that ``conv_fours`` takes, of a weight that `torchswat.runtime.fours` made."""
    return _packed(native, shape, lambda to: native.pack_fours(shape, address(weight), to, threads))


def _packed(native: ModuleType, shape: Any, pack: Callable[[Any], object]) -> Lists:
    starts = empty(native.weight_starts(shape, FORWARD), np.int32)
    capacity = native.weight_capacity(shape, FORWARD)
    values, offsets = lazy(capacity, np.float32), lazy(capacity, np.int16)
    pack(native.PackedWeights(*(address(array) for array in (starts, values, offsets))))
    return Lists(starts, values, offsets)


def with_gaps(weight: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Return a weight (K, C, R, S) with zeros between its taps, as dilation means."""
    if steps == (1, 1):
        return weight
    k, c, *kernel = weight.shape
    wide = empty(k * c * math.prod((size - 1) * step + 1 for size, step in zip(kernel, steps, strict=True)))
    wide = wide.reshape(k, c, *((size - 1) * step + 1 for size, step in zip(kernel, steps, strict=True)))
    wide[:] = 0
    wide[:, :, :: steps[0], :: steps[1]] = weight
    return wide


def for_rows(
    native: ModuleType, shape: Any, weight: np.ndarray, group: int = 1, steps: tuple[int, int] = (1, 1)
) -> Lists:
    """Return the lists that ``conv_rows`` takes, or ``rows_fours`` of fours, for this number of samples.

    A list holds a filter's weights from a block of channels; lists go by block, then filter. Weights that
    groups and dilation leave out are in no list and cost nothing.
    """
    k, per_group, r, s = weight.shape
    width = (s - 1) * steps[1] + 1
    tiling = np.empty(3 + ((r - 1) * steps[0] + 1) * width, np.int32)
    native.rows_tiling(shape, address(tiling))
    (block, blocks, channel_vectors), taps = tiling[:3], tiling[3:]
    flat = np.flatnonzero(weight.reshape(-1) != 0).astype(np.int32)
    rest, columns = np.divmod(flat, s)
    rest, rows = np.divmod(rest, r)
    filters, local = np.divmod(rest, per_group)
    channels = local + filters // (k // group) * per_group if group > 1 else local
    of_list = channels // block * k + filters
    starts = np.concatenate([[0], np.bincount(of_list, minlength=blocks * k).cumsum()])
    if blocks * k < 2**16:
        of_list = of_list.astype(np.uint16)  # which numpy sorts by radix
    order = np.argsort(of_list, kind="stable")
    offsets = channels % block * channel_vectors + taps[rows * steps[0] * width + columns * steps[1]]
    return Lists(
        starts.astype(np.int32),
        weight.reshape(-1)[flat[order]],
        offsets[order].astype(np.uint16).view(np.int16),
    )
