"""The kept weights of a convolution, in the order in which a kernel walks through them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lists:
    """Where each list starts (int32), and the values (float32) and offsets (int16) of all of them."""

    starts: Tensor
    values: Tensor
    offsets: Tensor

    def addresses(self) -> tuple[int, int, int]:
        """Return where the three lie, as kernels take them."""
        return self.starts.data_ptr(), self.values.data_ptr(), self.offsets.data_ptr()


FORWARD = 0


def for_samples(native: ModuleType, shape: Any, weight: Tensor) -> Lists:
    """Return the lists that ``conv_forward_fused`` takes: of use for any number of samples."""
    starts = torch.empty(native.weight_starts(shape, FORWARD), dtype=torch.int32)
    capacity = native.weight_capacity(shape, FORWARD)
    values, offsets = torch.empty(capacity), torch.empty(capacity, dtype=torch.int16)
    lists = native.PackedWeights(*(tensor.data_ptr() for tensor in (starts, values, offsets)))
    nowhere = native.PackedWeights()
    native.pack_weights(shape, weight.data_ptr(), 0, 0.0, lists, nowhere, 0, torch.get_num_threads())
    return Lists(starts, values, offsets)


def for_rows(native: ModuleType, shape: Any, weight: Tensor) -> Lists:
    """Return the lists that ``conv_rows`` takes, for this number of samples.

    A list holds a filter's weights from a block of channels; lists go by block, then filter.
    """
    k, _, r, s = weight.shape
    tiling = np.empty(3 + r * s, np.int32)
    native.rows_tiling(shape, tiling.ctypes.data)
    (block, blocks, channel_vectors), taps = tiling[:3], tiling[3:]
    dense = weight.numpy()
    filters, channels, rows, columns = dense.nonzero()
    of_list = channels // block * k + filters
    order = np.argsort(of_list, kind="stable")
    offsets = channels % block * channel_vectors + taps[rows * s + columns]
    starts = np.concatenate([[0], np.bincount(of_list, minlength=blocks * k).cumsum()])
    return Lists(
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(dense[filters, channels, rows, columns][order]),
        torch.from_numpy(offsets[order].astype(np.uint16).view(np.int16)),
    )
