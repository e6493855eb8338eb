"""Batch norm, the sum with a residual and the ReLU behind it as one autograd node.

For the backward pass batch norm needs its input, and the ReLU only to know which entries it let through: one
bit an entry, where torch keeps the ReLU's whole output beside the input. The input itself may be kept
narrower, as its deviation from the channel's mean: in bfloat16, or in 8 bits with a scale a channel.

The compiled kernels do it in one pass over each channel of a CHWN tensor; on any other device,
dtype or layout torch's operations do, with torch's own numbers.

An input that is kept whole says more: ``relu(x * scale + shift)`` recomputes the output bitwise.
So the compiled backward pass needs no bits of the ReLU where nothing was added before it, and a layer that
is given this `RecomputeInfo` need not save what it selected of the output either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchswat.engine import kept, ops
from torchswat.engine.buffer import buffer
from torchswat.engine.loader import kernel_for, native, native_for, native_for_entries
from torchswat.engine.once import differentiable_once

NORM_INPUTS: dict[str, int] = {"whole": 4, "bfloat16": 2, "int8": 1}
"""How batch norm's input is kept, and in how many bytes an entry (of a float32 input; of bfloat16, whole is 2)."""

_STEPS = 255


def runs_eagerly(*tensors: Tensor | None) -> bool:
    """Return whether these are plain tensors, and no transform, mode or compiler sees operations."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return all(t is None or type(t) in _PLAIN for t in tensors)


_PLAIN = (Tensor, torch.nn.Parameter)


def takes(x: Tensor, residual: Tensor | None = None) -> bool:
    """Return whether the compiled kernels take `x`: CHWN in memory, of float32 or bfloat16 (and `residual`), eager."""
    if x.dim() != 4 or not runs_eagerly(x, residual) or len(x) < 2 or not ops.is_chwn(x):
        return False
    return native_for_entries(x, residual) is not None


def _are_plain(*channel: Tensor | None) -> bool:
    """Return whether the kernels can read these where they lie, a number a channel each."""
    return native_for(*channel) is not None and all(t is None or t.is_contiguous() for t in channel)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class RecomputeInfo(NamedTuple):
    """What ``relu(x * scale + shift)`` is recomputed from, bitwise as the compiled kernels returned it.

    Attributes
    ----------
    x : Tensor of shape (N, C, H, W)
        The input of the batch norm, which saves it for its own backward pass; CHWN in memory.
    scale, shift : Tensor of shape (C,)
        The two factors of each channel.
    """

    x: Tensor
    scale: Tensor
    shift: Tensor


def kept_as(norm_input: str, x: Tensor) -> str:
    """Return how `x` is kept: whole where a copy in bfloat16 would be no narrower."""
    return "whole" if norm_input == "bfloat16" and x.dtype is torch.bfloat16 else norm_input


def factors_for(x: Tensor, relu: bool, residual: Tensor | None, norm_input: str) -> tuple[Tensor, ...]:
    """Return empty scale and shift, (C,), where the output can be recomputed from `x`; else nothing."""
    again = relu and residual is None and norm_input == "whole"
    return buffer(2, x.shape[1]).unbind() if again else ()


def is_compiled(x: Tensor, residual: Tensor | None, *channel: Tensor | None) -> bool:
    """Return whether the compiled kernels normalise `x` with these parameters, (C,) each."""
    return takes(x, residual) and _are_plain(*channel)


class BatchNorm(torch.autograd.Function):
    """Training batch norm, with the sum with a residual and the ReLU behind it where those are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, C, H, W)
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        relu: bool,
        norm_input: str,
        compiled: bool,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        ctx.compiled, ctx.eps, ctx.norm_input = compiled, eps, norm_input
        run = _forward_compiled if ctx.compiled else _forward_in_torch
        statistics = weight, bias, running_mean, running_var, eps, momentum
        how = relu, norm_input, scale, shift
        y, positive, mean, inverse_deviation, copy = run(x, residual, *statistics, *how)
        ctx.strides = kept.dense_strides(y)
        ctx.save_for_backward(weight, positive, scale, shift, mean, inverse_deviation, *(copy or (x,)))
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        run = _backward_compiled if ctx.compiled else _backward_in_torch
        grads = run(ctx, gradient, *ctx.saved_tensors)
        return *grads, *[None] * 9


Copy = tuple[Tensor, ...]
"""What is kept of the input beside the whole of it: a narrow copy, or that and its steps and lows."""


# ---- compiled ----------------------------------------------------------------------------------------------


def _forward_compiled(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    momentum: float,
    relu: bool,
    norm_input: str,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Copy]:
    channels, length = x.shape[1], x.numel() // x.shape[1]
    residual = None if residual is None else ops.as_chwn(residual)
    y = torch.empty_like(x)
    told = relu and scale is None  # what the ReLU lets through, which can be told from x otherwise
    positive = buffer(channels, -(-length // kept.WORD), dtype=torch.int64) if told else None
    mean, inverse_deviation = buffer(channels), buffer(channels)
    copy: Copy = ()
    if norm_input == "bfloat16":
        copy = (torch.empty_like(x, dtype=torch.bfloat16),)
    elif norm_input == "int8":
        copy = torch.empty_like(x, dtype=torch.uint8), buffer(channels), buffer(channels)
    kernel_for(native(), "batch_norm_forward", x)(  # type: ignore[union-attr]
        *(x.data_ptr(), channels, length, _address(weight), _address(bias), eps),
        *(_address(residual), relu, y.data_ptr()),
        *(_address(t) for t in (positive, mean, inverse_deviation, scale, shift, running_mean, running_var)),
        *(momentum, (*copy, x)[0].element_size(), *_addresses(copy), torch.get_num_threads()),
    )
    return y, positive, mean, inverse_deviation, copy


def _addresses(copy: Copy) -> list[int]:
    return [tensor.data_ptr() for tensor in copy] + [0] * (3 - len(copy))


def _backward_compiled(
    ctx: Any,
    gradient: Tensor,
    weight: Tensor | None,
    positive: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    x: Tensor,
    *steps: Tensor,
) -> tuple[Tensor | None, ...]:
    gradient, x = ops.as_chwn(gradient), ops.as_chwn(x)  # hooks on what is saved may lay it out anew
    channels, length = x.shape[1], x.numel() // x.shape[1]
    grad_x = torch.empty_like(x, dtype=gradient.dtype)
    grad_weight, grad_bias = buffer(channels), buffer(channels)
    rectifier = _address(positive), _address(scale), _address(shift)
    grad_residual = None
    if ctx.needs_input_grad[1]:  # without a ReLU it is the gradient as it came
        grad_residual = gradient if positive is None else torch.empty_like(gradient)
    apart = grad_residual if positive is not None else None
    kernel_for(native(), "batch_norm_backward", gradient)(  # type: ignore[union-attr]
        *(gradient.data_ptr(), *rectifier, x.element_size(), *_addresses((x, *steps))),
        *(channels, length, *(_address(t) for t in (weight, mean, inverse_deviation, grad_x, apart))),
        *(grad_weight.data_ptr(), grad_bias.data_ptr(), torch.get_num_threads()),
    )
    return grad_x, grad_residual, *((None, None) if weight is None else (grad_weight, grad_bias))


# ---- in torch ----------------------------------------------------------------------------------------------


def _forward_in_torch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    momentum: float,
    relu: bool,
    norm_input: str,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Copy]:
    y, mean, inverse_deviation = torch.native_batch_norm(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    copy = _narrowed(x, mean, norm_input)
    if residual is not None:
        y += residual
    if not relu:
        return y, None, mean, inverse_deviation, copy
    y, positive = kept.rectify(y, inplace=True)
    return y, positive, mean, inverse_deviation, copy


def _backward_in_torch(
    ctx: Any,
    gradient: Tensor,
    weight: Tensor | None,
    positive: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    x: Tensor,
    *steps: Tensor,
) -> tuple[Tensor | None, ...]:
    if positive is not None:
        gradient = kept.rectified_gradient(gradient, positive, ctx.strides)
    if ctx.norm_input != "whole":
        x, mean = _widened(x, gradient.dtype, *steps), torch.zeros_like(mean)
    wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, inverse_deviation, True, ctx.eps, wanted
    )
    return grad_x, gradient if ctx.needs_input_grad[1] else None, grad_weight, grad_bias


def _a_channel(values: Tensor) -> Tensor:  # (C,)
    return values.view(-1, 1, 1)


def _narrowed(x: Tensor, mean: Tensor, norm_input: str) -> Copy:
    """Return the deviations of `x` from `mean` as they are kept; nothing where `x` is kept whole."""
    if norm_input == "whole":
        return ()
    deviation = x.to(mean.dtype) - _a_channel(mean)
    if norm_input == "bfloat16":
        return (deviation.to(torch.bfloat16),)
    low, high = deviation.amin((0, 2, 3)), deviation.amax((0, 2, 3))
    step = (high - low) / _STEPS
    scale = torch.where(step > 0, step, 1)
    q = ((deviation - _a_channel(low)) / _a_channel(scale)).round_().clamp_(0, _STEPS)
    return q.to(torch.uint8), step, low


def _widened(copy: Tensor, dtype: torch.dtype, *steps: Tensor) -> Tensor:
    """Return the deviations from the mean again."""
    if not steps:
        return copy.to(dtype)
    step, low = steps
    return (copy.to(step.dtype) * _a_channel(step) + _a_channel(low)).to(dtype)
