"""What a selection found, and the k largest magnitudes of a float32 tensor by the compiled kernels.

The plain torch counterpart is `torchswat.selection`, which also does every other dtype, device and scope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchswat.engine.buffer import buffer
from torchswat.engine.loader import native_for

SMALLEST = 2.0**-149
"""The smallest positive float32: as a threshold it keeps all but zeros."""


@dataclass(frozen=True)
class Selection:
    """Which entries of one tensor are kept: those marked by `mask`, or else all of at least `threshold`.

    A threshold saves the mask's byte an entry and the pass that writes it; the compiled kernels take either.
    """

    mask: Tensor | None = None
    threshold: float = 0.0
    count: int | None = None
    """How many are kept, where that is known."""

    def mask_of(self, tensor: Tensor) -> Tensor:
        """Return the mask (bool, shaped and laid out like `tensor`, the one that was selected from)."""
        if self.mask is not None:
            return self.mask
        mask = marked(tensor, self.threshold)
        return tensor.detach().abs() >= self.threshold if mask is None else mask

    def kept(self, tensor: Tensor) -> Tensor:
        """Return `tensor` with zeros where nothing is kept (where there was an infinity as well)."""
        return torch.where(self.mask_of(tensor), tensor, tensor.new_zeros(()))


@dataclass(frozen=True)
class Found:
    """The k-th largest magnitude, how many exceed it and equal it, and whether a NaN was met."""

    value: float
    greater: int
    equal: int
    not_a_number: bool


def largest_mask(tensor: Tensor, k: int) -> tuple[Tensor, float, int]:
    """Return the mask of exactly the `k` largest magnitudes in plain torch, laid out like `tensor`.

    Ties go to the lowest index in the order of the shape. Beside it the threshold, and how many of those equal to it
    are kept (-1: all of them).

    Examples
    --------
    >>> mask, threshold, ties = largest_mask(torch.tensor([3.0, -1.0, 2.0, -2.0]), 2)
    >>> mask.tolist(), threshold, ties
    ([True, False, True, False], 2.0, 1)
    """
    magnitudes = tensor.detach().abs()
    mask = torch.empty_like(tensor, dtype=torch.bool)
    if k >= tensor.numel():
        return mask.fill_(True), 0.0, -1
    flat = magnitudes.reshape(-1)
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat >= threshold
    extra = int(kept.count_nonzero()) - k
    ties = -1
    if extra:
        equal = (flat == threshold).nonzero().squeeze(1)
        ties = equal.numel() - extra
        kept[equal[ties:]] = False
    return mask.copy_(kept.view(tensor.shape)), float(threshold), ties


def memory_order(tensor: Tensor) -> Tensor | None:
    """Return a flat view of `tensor` in the order of its memory, or None where it has gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    permuted = tensor.permute(by_stride)
    return permuted.view(-1) if permuted.is_contiguous() else None


def kth_largest(tensor: Tensor, k: int) -> Found | None:
    """Find the k-th largest magnitude, or return None where the kernel does not apply."""
    native = native_for(tensor)
    flat = memory_order(tensor.detach()) if native else None
    if native is None or flat is None:
        return None
    found = native.kth_largest(flat.data_ptr(), flat.numel(), k, torch.get_num_threads())
    return Found(found.value, found.greater, found.equal, found.not_a_number)


def sampled_threshold(tensor: Tensor, k: int, samples: int) -> float | None:
    """Estimate the k-th largest magnitude, or return None where the kernel does not apply."""
    native = native_for(tensor)
    flat = memory_order(tensor.detach()) if native else None
    if native is None or flat is None:
        return None
    return native.sampled_threshold(flat.data_ptr(), flat.numel(), k, samples, 0, torch.get_num_threads())


def count_kept(tensor: Tensor, threshold: float) -> Found | None:
    """Count what exceeds and what equals `threshold`, or return None where the kernel does not apply."""
    native = native_for(tensor)
    flat = memory_order(tensor.detach()) if native else None
    if native is None or flat is None:
        return None
    found = native.count_kept(flat.data_ptr(), flat.numel(), threshold, torch.get_num_threads())
    return Found(found.value, found.greater, found.equal, found.not_a_number)


def marked(tensor: Tensor, threshold: float, ties: int | None = None) -> Tensor | None:
    """Return the mask of the magnitudes above `threshold` and of those equal to it, all or the first `ties`.

    First is meant in the order of the shape. None where the kernel does not apply: it knows two orders of
    memory, that of the shape and the one with the first dimension innermost.
    """
    native = native_for(tensor)
    tensor = tensor.detach()
    if native is None or tensor.dim() == 0:
        return None
    if tensor.is_contiguous():
        lanes = 1
    elif tensor.movedim(0, -1).is_contiguous():
        lanes = tensor.shape[0]
    else:
        return None
    mask = torch.empty_like(tensor, dtype=torch.bool)
    sizes = tensor.numel() // lanes, lanes
    ties = tensor.numel() if ties is None else ties
    native.magnitude_mask(
        tensor.data_ptr(), *sizes, threshold, ties, mask.data_ptr(), torch.get_num_threads()
    )
    return mask


# ---- rows: every leading index has k of its own ------------------------------------------------------------


@dataclass(frozen=True)
class FoundRows:
    """The k-th largest magnitude of each row, how many of it exceed and equal it, and whether a NaN was met.

    The tensors are (groups, lanes), as in `_rows`.
    """

    values: Tensor
    greater: Tensor
    equal: Tensor
    not_a_number: bool


def _rows(tensor: Tensor, leading: int) -> tuple[int, int, int] | None:
    """Return (groups, length, lanes) if memory is ``[groups][length][lanes]``, a row for each group and lane.

    Rows lie one behind the other (lanes are 1), or the first dimension is innermost (lanes are its size).
    """
    if tensor.is_contiguous():
        return math.prod(tensor.shape[:leading]), math.prod(tensor.shape[leading:]), 1
    if tensor.movedim(0, -1).is_contiguous():
        return math.prod(tensor.shape[1:leading]), math.prod(tensor.shape[leading:]), len(tensor)
    return None


def kth_largest_rows(tensor: Tensor, k: int, leading: int) -> FoundRows | None:
    """Find the k-th largest of each leading index; None where the kernel does not apply."""
    native = native_for(tensor)
    tensor = tensor.detach()
    rows = _rows(tensor, leading) if native else None
    if native is None or rows is None:
        return None
    groups, length, lanes = rows
    values = buffer(groups, lanes)
    greater, equal = buffer(2, groups, lanes, dtype=torch.int64)
    pointers = values.data_ptr(), greater.data_ptr(), equal.data_ptr()
    sizes = groups, length, lanes, k
    nan = native.kth_largest_lanes(tensor.data_ptr(), *sizes, *pointers, torch.get_num_threads())
    return FoundRows(values, greater, equal, nan)


def by_row(values: Tensor, tensor: Tensor, leading: int) -> Tensor:
    """Return one value a row, (groups, lanes), in the shape that broadcasts against `tensor`."""
    sizes = [*tensor.shape[:leading], *[1] * (tensor.dim() - leading)]
    if values.shape[1] == 1:
        return values.view(sizes)
    return values.view(*sizes[1:], sizes[0]).movedim(-1, 0)


def marked_rows(tensor: Tensor, leading: int, found: FoundRows, ties: Tensor) -> Tensor:
    """Return the mask of what exceeds each row's threshold, and of the first `ties` of what equals it."""
    rows = _rows(tensor, leading)
    assert rows is not None, "found in another tensor"
    mask = torch.empty_like(tensor, dtype=torch.bool)
    pointers = found.values.data_ptr(), found.equal.data_ptr(), ties.data_ptr(), mask.data_ptr()
    native_for(tensor).magnitude_mask_lanes(  # type: ignore[union-attr]
        tensor.data_ptr(), *rows, *pointers, torch.get_num_threads()
    )
    return mask
