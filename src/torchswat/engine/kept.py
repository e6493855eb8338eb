"""ReLU with one bit an entry saved for backward, in the order of the memory of its output.

Any tensor on any device: where the compiled kernels take it they do the work, else torch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchswat.engine.buffer import buffer
from torchswat.engine.loader import kernel_for, native, native_for_entries
from torchswat.engine.saved import pack_bits, unpack_bits
from torchswat.engine.topk import memory_order

WORD = 64  # bits in a word of the compiled kernels; those of torch are bytes


def _like(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return `mask` flat, in the order of the memory of `tensor`."""
    if memory_order(tensor) is None:
        return mask.contiguous().view(-1)
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return mask.permute(by_stride).contiguous().view(-1)


def _compiled():
    module = native()
    if module is None:
        raise RuntimeError("a backward pass must run on the engine that its forward pass ran on.")
    return module


# ---- ReLU --------------------------------------------------------------------------------------------------


def rectify(x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    """Return ``relu(x)``, which may be `x` itself, and the bits that say where it let `x` through."""
    module, flat = native_for_entries(x), memory_order(x)
    if module is None or flat is None:
        y = x.relu_() if inplace else x.relu()
        return y, pack_bits(_like(y, ~(y <= 0)))
    y = x if inplace else torch.empty_like(x)
    bits = buffer(-(-x.numel() // WORD), dtype=torch.int64)
    threads = torch.get_num_threads()
    kernel_for(module, "relu_forward", x)(x.data_ptr(), x.numel(), y.data_ptr(), bits.data_ptr(), threads)
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
        kernel_for(_compiled(), "relu_backward", gradient)(*pointers, torch.get_num_threads())
    else:
        flat, to = memory_order(gradient), memory_order(result)
        assert flat is not None and to is not None
        torch.where(unpack_bits(bits, n), flat, flat.new_zeros(()), out=to)
    return result
