"""Weights in blocks of neighbouring filters and input channels: sums of magnitudes, and masks of whole blocks.

A weight is (K, C, R, S) or (K, C), of a convolution with groups K is all filters and C the channels of one group.
Blocks lie at one kernel position and do not cross groups; the last ones of a side may be smaller.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = (1, 2, 4, 8)
"""How many filters, or input channels, a block may have."""


class Blocks(NamedTuple):
    """How a weight is divided into blocks.

    Examples
    --------
    >>> Blocks(2, 2).grid((5, 4, 3, 3)), Blocks(2, 2).count((5, 4, 3, 3))
    ((3, 2, 3, 3), 54)
    """

    filters: int
    channels: int
    groups: int = 1

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the blocks' sums for a weight of this shape."""
        filters, channels, *kernel = shape
        rows = self.groups * math.ceil(filters // self.groups / self.filters)
        return rows, math.ceil(channels / self.channels), *kernel

    def count(self, shape: tuple[int, ...]) -> int:
        """Return how many blocks a weight of this shape has."""
        return math.prod(self.grid(shape))


def block_sums(weight: Tensor, blocks: Blocks) -> Tensor:
    """Return the sum of magnitudes of each block, in float32 or, of a float64 weight, in float64.

    The order of the additions is that of the compiled kernel: filters first.

    Examples
    --------
    >>> block_sums(torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, -5.0]]), Blocks(2, 2))
    tensor([[7., 8.]])
    """
    magnitudes = weight.detach().abs()
    if magnitudes.element_size() < 4:
        magnitudes = magnitudes.to(torch.float32)
    filters, channels = len(weight) // blocks.groups, weight.shape[1]
    magnitudes = magnitudes.reshape(blocks.groups, filters, channels, -1)
    missing = -filters % blocks.filters, -channels % blocks.channels
    magnitudes = F.pad(magnitudes, (0, 0, 0, missing[1], 0, missing[0]))
    of_rows = _sum(magnitudes.unflatten(1, (-1, blocks.filters)), 2)
    return _sum(of_rows.unflatten(2, (-1, blocks.channels)), 3).reshape(blocks.grid(weight.shape))


def _sum(tensor: Tensor, dim: int) -> Tensor:
    return reduce(torch.add, tensor.unbind(dim))


def mask_of_blocks(kept: Tensor, weight: Tensor, blocks: Blocks) -> Tensor:
    """Return the mask of the weights in the blocks that are `kept` (bool, shaped like the sums).

    Examples
    --------
    >>> mask_of_blocks(torch.tensor([[True, False]]), torch.zeros(2, 3), Blocks(2, 2))
    tensor([[ True,  True, False],
            [ True,  True, False]])
    """
    filters, channels = len(weight) // blocks.groups, weight.shape[1]
    rows = kept.reshape(blocks.groups, -1, kept.shape[1], math.prod(kept.shape[2:]))
    whole = rows.repeat_interleave(blocks.filters, 1).repeat_interleave(blocks.channels, 2)
    mask = torch.empty_like(weight, dtype=torch.bool)  # in the memory layout of the weight
    return mask.copy_(whole[:, :filters, :channels].reshape(weight.shape))


@lru_cache(maxsize=4096)
def _native_blocks(native: Any, shape: tuple[int, ...], blocks: Blocks) -> Any:
    filters, channels, *kernel = shape
    sizes = blocks.groups, filters // blocks.groups, channels, math.prod(kernel)
    return native.Blocks(*sizes, blocks.filters, blocks.channels)


def select_blocks(
    native: Any,
    weight: Tensor,
    blocks: Blocks,
    memory: int,
    k: int,
    sparsity: float,
    due: bool,
    exact: bool,
    frozen: bool,
) -> tuple[Tensor, Any]:
    """Return the mask of the `k` blocks of the largest sums, and what the kernel says of the selection.

    `memory` is the address of threshold, its sparsity and density; see ``native/blocks.cpp``.
    """
    source = weight.detach().contiguous()
    mask = torch.empty(source.shape, dtype=torch.bool, device="cpu")
    at = memory, source.data_ptr(), _native_blocks(native, tuple(source.shape), blocks)
    how = k, sparsity, due, exact, frozen
    found = native.select_blocks(*at, *how, mask.data_ptr(), torch.get_num_threads())
    if weight.stride() != mask.stride():
        mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
    return mask, found
