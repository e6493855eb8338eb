"""SWAT's convolution as one differentiable operation, for graphs that a compiler or an exporter reads.

The layers of `torchswat.layers` keep state in Python (thresholds, counters), at which a graph breaks. Here
nothing is kept: the limits come in as tensors, from `kth_largest` or from wherever a user has them, and what
the backward pass needs goes out beside the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from torchswat.engine import ops, topk
from torchswat.engine.topk import SMALLEST


@custom_op("torchswat::kth_largest", mutates_args=())
def kth_largest(x: Tensor, k: int) -> Tensor:
    """Return the `k`-th largest magnitude of `x` as a tensor without dimensions; a NaN is the largest."""
    found = topk.kth_largest(x, k)
    if found is None:
        return x.abs().flatten().kthvalue(x.numel() - k + 1).values
    return x.new_tensor(float("nan") if found.not_a_number else found.value)


@kth_largest.register_fake
def _(x: Tensor, k: int) -> Tensor:
    return x.new_empty(())


kth_largest.register_autograd(lambda ctx, gradient: (None, None))  # a selection is a constant


@custom_op("torchswat::swat_conv2d", mutates_args=())
def swat_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_limit: Tensor,
    weight_limit: Tensor,
    stride: list[int],
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Convolve with the weights of at least `weight_limit`; differentiable as SWAT is (Algorithm 1).

    Returns the batch-innermost output and what the backward pass reads: the same weights packed for
    ``grad_input`` (three tensors), and the entries of `x` of at least `x_limit` compressed (three tensors).
    """
    sizes = list(x.shape), stride, padding
    limit = float(weight_limit)
    forward = ops.pack_weight(weight, None, limit, *sizes, ops.FORWARD)
    backward = ops.pack_weight(weight, None, limit, *sizes, ops.GRAD_INPUT)
    inner = ops.as_inner(x)
    compressed = ops.compress(inner, None, max(float(x_limit), SMALLEST))
    output = ops.conv2d_packed(inner, *forward, bias, list(weight.shape), stride, padding)
    return output, *backward, *compressed


@swat_conv2d.register_fake
def _(x, weight, bias, x_limit, weight_limit, stride, padding):
    n, c, h, w = x.shape
    size = ops.output_size(list(x.shape), list(weight.shape), stride, padding)
    starts, kept, offsets, entries = (torch.library.get_ctx().new_dynamic_size() for _ in range(4))
    return (
        ops.empty_inner(*size, like=x),
        weight.new_empty(starts, dtype=torch.int32),
        weight.new_empty(kept),
        weight.new_empty(offsets, dtype=torch.int16),
        x.new_empty(entries),
        x.new_empty((c, -(-h * w // ops.UNIT), n), dtype=torch.int16),
        x.new_empty(c + 1, dtype=torch.int64),
    )


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, ctx.stride, ctx.padding = inputs
    ctx.input_size, ctx.weight_size = list(x.shape), list(weight.shape)
    ctx.has_bias = bias is not None
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    packed, compressed = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    sizes = ctx.input_size, ctx.weight_size, ctx.stride, ctx.padding
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.conv2d_packed_grad_input(gradient, *packed, *sizes)
    if ctx.needs_input_grad[1]:
        grad_weight = ops.conv2d_compressed_grad_weight(*compressed, gradient, *sizes)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = gradient.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None, None, None


swat_conv2d.register_autograd(_backward, setup_context=_keep)
