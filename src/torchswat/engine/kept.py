"""Tensors as they wait for the backward pass: the entries that are kept, and one bit an entry.

Any tensor on any device: where the compiled kernels take it they do the work, else torch does. Entries stand
in the order of the tensor's memory, so a form is undone into a tensor of the same strides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchswat.engine.buffer import buffer
from torchswat.engine.loader import native, native_for
from torchswat.engine.topk import SMALLEST, Selection, memory_order

WORD = 64  # bits in a word of the compiled kernels; those of torch are bytes
Kept = tuple[Tensor, Tensor]
"""Values and bits."""


# ---- bits --------------------------------------------------------------------------------------------------


def pack_bits(marks: Tensor) -> Tensor:
    """Return the booleans (n,) as bytes (ceil(n / 8),), the first the lowest bit of the first.

    Examples
    --------
    >>> pack_bits(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist()
    [5, 1]
    """
    padded = torch.nn.functional.pad(marks, (0, -marks.numel() % 8)).view(-1, 8).to(torch.uint8)
    packed = padded[:, 0].clone()
    for place in range(1, 8):
        packed |= padded[:, place] << place
    return packed


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """Return the first `n` of the packed `bits` as booleans (n,).

    Examples
    --------
    >>> unpack_bits(torch.tensor([5, 1], dtype=torch.uint8), 9).nonzero().flatten().tolist()
    [0, 2, 8]
    """
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(1) >> places) & 1).bool().view(-1)[:n]


def _flat(tensor: Tensor) -> Tensor:
    """Return a flat view of `tensor` in the order of its memory, or a flat copy where it has gaps."""
    flat = memory_order(tensor)
    return tensor.contiguous().view(-1) if flat is None else flat


def _like(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return `mask` flat, in the order of the memory of `tensor`."""
    if memory_order(tensor) is None:
        return mask.contiguous().view(-1)
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return mask.permute(by_stride).contiguous().view(-1)


# ---- tensors with few entries ------------------------------------------------------------------------------


def keep(tensor: Tensor, selection: Selection) -> Kept:
    """Return values and bits of what `selection` keeps of `tensor`, but for zeros, which say nothing.

    Examples
    --------
    >>> values, bits = keep(torch.tensor([0.1, -3.0, 0.0, 2.0]), Selection(limit=1.0))
    >>> values.tolist(), restore((values, bits), torch.empty(4)).tolist()
    ([-3.0, 2.0], [0.0, -3.0, 0.0, 2.0])
    """
    tensor = tensor.detach()
    flat, mask = _flat(tensor), None if selection.mask is None else _like(tensor, selection.mask)
    module = native_for(tensor)
    if module is None:
        marks = (flat.abs() >= selection.limit if mask is None else mask) & (flat != 0)
        return flat[marks], pack_bits(marks)
    n, threads = flat.numel(), torch.get_num_threads()
    starts = buffer(module.kept_parts(n) + 1, dtype=torch.int64)
    bits = buffer(-(-n // WORD), dtype=torch.int64)
    which = flat.data_ptr(), 0 if mask is None else mask.data_ptr(), max(selection.limit, SMALLEST), n
    count = module.mark_kept(*which, bits.data_ptr(), starts.data_ptr(), threads)
    values = buffer(count)
    module.gather_kept(flat.data_ptr(), bits.data_ptr(), starts.data_ptr(), n, values.data_ptr(), threads)
    return values, bits


def restore(kept: Kept, like: Tensor) -> Tensor:
    """Return the dense tensor again, written to `like`, which has the shape and strides of the one kept."""
    values, bits = kept
    flat = memory_order(like)
    result = like if flat is not None else torch.empty(like.shape, dtype=like.dtype, device=like.device)
    flat = _flat(result)
    if bits.dtype == torch.int64:
        _compiled().scatter_kept(
            *(values.data_ptr(), bits.data_ptr(), flat.numel(), flat.data_ptr()), torch.get_num_threads()
        )
    else:
        flat.zero_()[unpack_bits(bits, flat.numel())] = values
    return result


def _compiled():
    module = native()
    if module is None:
        raise RuntimeError("a backward pass must run on the engine that its forward pass ran on.")
    return module


# ---- ReLU --------------------------------------------------------------------------------------------------


def rectify(x: Tensor, inplace: bool) -> Kept:
    """Return ``relu(x)``, which may be `x` itself, and the bits that say where it let `x` through."""
    module, flat = native_for(x), memory_order(x)
    if module is None or flat is None:
        y = x.relu_() if inplace else x.relu()
        return y, pack_bits(_like(y, ~(y <= 0)))
    y = x if inplace else torch.empty_like(x)
    bits = buffer(-(-x.numel() // WORD), dtype=torch.int64)
    threads = torch.get_num_threads()
    module.relu_forward(x.data_ptr(), x.numel(), y.data_ptr(), bits.data_ptr(), threads)
    return y, bits


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return strides in the order of those of `tensor`, without its gaps: those that the bits stand for."""
    return tensor.stride() if memory_order(tensor) is not None else tensor.new_empty(tensor.shape).stride()


def rectified_gradient(gradient: Tensor, bits: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return `gradient` where `bits` are set, which are of a result with these dense strides, else zeros."""
    like: Any = {"dtype": gradient.dtype, "device": gradient.device}
    if gradient.stride() != strides:
        gradient = torch.empty_strided(gradient.shape, strides, **like).copy_(gradient)
    result, n = torch.empty_strided(gradient.shape, strides, **like), gradient.numel()
    if bits.dtype == torch.int64:
        pointers = gradient.data_ptr(), bits.data_ptr(), n, result.data_ptr()
        _compiled().relu_backward(*pointers, torch.get_num_threads())
    else:
        flat, to = memory_order(gradient), memory_order(result)
        assert flat is not None and to is not None
        torch.where(unpack_bits(bits, n), flat, flat.new_zeros(()), out=to)
    return result
