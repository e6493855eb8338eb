"""Training batch norm, the sum with a residual and a ReLU as one operation of a graph that is traced.

What `torchswat.engine.batch_norm` does in eager mode, with everything it changes among its outputs: the running
statistics come out anew, and the ReLU's bits have one form, [C][ceil(N H W / 64)] words, whatever computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchswat.engine import batch_norm, kept, layout
from torchswat.engine.ops import library
from torchswat.engine.saved import pack_bits, unpack_bits
from torchswat.errors import InvalidValue

library.define(
    "batch_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
    "float eps, float momentum, bool relu) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "batch_norm_backward(Tensor gradient, Tensor x, Tensor? weight, Tensor positive, Tensor mean, "
    "Tensor inverse_deviation, float eps, bool relu, bool with_residual) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _words(x: Tensor) -> int:
    return (x.shape[0] * x.shape[2] * x.shape[3] + kept.WORD - 1) // kept.WORD


def _check(x: Tensor, channels: tuple[Tensor | None, ...], like: tuple[Tensor | None, ...]) -> None:
    """Raise `InvalidValue` unless `x` is (N, C, H, W), and the others have a number a channel, or its shape."""
    if x.dim() != 4 or not x.is_floating_point() or x.numel() <= x.shape[1]:
        raise InvalidValue(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; allowed is a float (N, C, H, W) with more than one "
            "value a channel."
        )
    for tensor in channels:
        if tensor is not None and (tensor.shape != x.shape[1:2] or not tensor.is_floating_point()):
            raise InvalidValue(
                f"a parameter or statistic has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; allowed is a "
                f"float for each of the {x.shape[1]} channels."
            )
    for tensor in like:
        if tensor is not None and (tensor.shape != x.shape or tensor.dtype != x.dtype):
            raise InvalidValue(
                f"an operand has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; allowed are those of x, "
                f"{tuple(x.shape)} and {x.dtype}."
            )


def _forward(x, residual, weight, bias, running_mean, running_var, eps, momentum, relu):
    channels = weight, bias, running_mean, running_var
    _check(x, channels, (residual,))
    mean, variance = running_mean.clone(), running_var.clone()
    statistics = weight, bias, mean, variance, eps, momentum
    positive = x.new_empty((x.shape[1], _words(x) if relu else 0), dtype=torch.int64)
    if batch_norm.is_compiled(x, residual, *channels):
        y, bits, centre, inverse, _ = batch_norm._forward_compiled(
            x, residual, *statistics, relu, "whole", None, None
        )
        return y, positive if bits is None else bits, centre, inverse, mean, variance
    y, centre, inverse = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, eps)
    y = y if residual is None else y + residual
    if relu:
        y = y.relu()
        positive = _packed(y > 0)
    return torch.empty_like(x).copy_(y), positive, centre, inverse, mean, variance


def _packed(marks: Tensor) -> Tensor:
    flat = marks.transpose(0, 1).flatten(1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % kept.WORD))
    return pack_bits(padded.flatten()).view(torch.int64).view(len(flat), -1)


def _unpacked(bits: Tensor, size: torch.Size) -> Tensor:
    n, c, h, w = size
    flat = unpack_bits(bits.contiguous().view(-1).view(torch.uint8), bits.numel() * kept.WORD).view(c, -1)
    return flat[:, : n * h * w].reshape(c, n, h, w).transpose(0, 1)


def _fake_forward(x, residual, weight, bias, running_mean, running_var, eps, momentum, relu):
    positive = x.new_empty((x.shape[1], _words(x) if relu else 0), dtype=torch.int64)
    statistics = (torch.empty_like(running_mean) for _ in range(4))
    return torch.empty_like(x), positive, *statistics


class _Saved:
    """What the compiled backward pass asks of an autograd context."""

    def __init__(self, with_residual: bool) -> None:
        self.needs_input_grad = (True, with_residual, True, True)


def _backward(gradient, x, weight, positive, mean, inverse_deviation, eps, relu, with_residual):
    _check(x, (weight, mean, inverse_deviation), (gradient,))
    if positive.dtype != torch.int64 or (relu and positive.shape != (x.shape[1], _words(x))):
        raise InvalidValue(
            f"positive has shape {tuple(positive.shape)} and dtype {positive.dtype}; allowed is int64 of shape "
            f"({x.shape[1]}, {_words(x)})."
        )
    none = x.new_empty(0)
    if batch_norm.is_compiled(x, None, weight, mean, inverse_deviation):
        bits = positive.contiguous() if relu else None
        operands = layout.as_chwn(gradient), weight, bits, None, None, mean, inverse_deviation, x
        grad_x, grad_residual, grad_weight, grad_bias = batch_norm._backward_compiled(
            _Saved(with_residual), *operands
        )
        if grad_residual is gradient:  # an operation returns no operand of its own
            grad_residual = gradient.clone()
    else:
        gated = torch.where(_unpacked(positive, x.shape), gradient, 0) if relu else gradient
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gated, x, weight, None, None, mean, inverse_deviation, True, eps, [True, True, True]
        )
        grad_x = torch.empty_like(x).copy_(grad_x)
        grad_residual = torch.empty_like(x).copy_(gated) if with_residual else None
    if weight is None:
        grad_weight = grad_bias = None
    return (
        grad_x,
        none
        if grad_residual is None
        else torch.empty_like(x).copy_(grad_residual)
        if grad_residual.stride() != x.stride()
        else grad_residual,
        x.new_empty(0) if grad_weight is None else grad_weight,
        x.new_empty(0) if grad_bias is None else grad_bias,
    )


def _fake_backward(gradient, x, weight, positive, mean, inverse_deviation, eps, relu, with_residual):
    none = [x.new_empty(0) for _ in range(3)]
    return (
        torch.empty_like(x),
        torch.empty_like(x) if with_residual else none[0],
        none[1] if weight is None else torch.empty_like(mean),
        none[2] if weight is None else torch.empty_like(mean),
    )


library.impl("batch_norm", _forward, "CompositeExplicitAutograd")
library.impl("batch_norm_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("torchswat::batch_norm", _fake_forward, lib=library)
torch.library.register_fake("torchswat::batch_norm_backward", _fake_backward, lib=library)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _, _, _, ctx.eps, _, ctx.relu = inputs
    ctx.with_residual = residual is not None
    ctx.save_for_backward(x, weight, *output[1:4])


def _gradients(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, positive, mean, inverse = ctx.saved_tensors
    how = ctx.eps, ctx.relu, ctx.with_residual
    grads = torch.ops.torchswat.batch_norm_backward(gradient, x, weight, positive, mean, inverse, *how)
    given = True, ctx.with_residual, weight is not None, weight is not None
    wanted = [
        grad if there and want else None
        for grad, there, want in zip(grads, given, ctx.needs_input_grad[:4], strict=True)
    ]
    return *wanted, None, None, None, None, None


torch.library.register_autograd("torchswat::batch_norm", _gradients, setup_context=_save, lib=library)


def traced(
    norm: torch.nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor | None:
    """Return training batch norm as one operation of the graph that is traced; None where torch's own has to do it."""
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not norm.training or mean is None or variance is None or batches is None or norm.momentum is None:
        return None
    narrow = x.dtype == torch.bfloat16 and mean.dtype == variance.dtype == torch.float32
    wide = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.dim() != 4 or x.device.type != "cpu" or not (narrow or wide):
        return None
    batches.add_(1)
    y, _, _, _, new_mean, new_variance = torch.ops.torchswat.batch_norm(
        x, residual, norm.weight, norm.bias, mean, variance, norm.eps, norm.momentum, relu
    )
    mean.copy_(new_mean.detach())
    variance.copy_(new_variance.detach())
    return y
