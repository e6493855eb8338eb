"""A sparse layer's forward and backward pass in plain torch: any dtype, device and geometry.

The readable counterpart of `torchswat.engine.compiled_layer`: operands are selected, zeros stand where nothing is
kept, and torch's dense products do the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchswat.engine import dense, layout, saved
from torchswat.engine.arguments import (
    EXACT,
    FORWARD_WEIGHT,
    GRAD_INPUT_WEIGHT,
    GRAD_WEIGHT_ACTIVATION,
    Arguments,
    Moment,
    kept_now,
    not_a_number,
)
from torchswat.engine.state import (
    ACTIVATION,
    ACTIVATION_COUNT,
    ACTIVATION_THRESHOLD,
    ITERATION,
    PRODUCTS,
    SPARSITY,
    WEIGHT,
    WEIGHT_THRESHOLD,
    WEIGHT_TIES,
    get,
    put,
)
from torchswat.engine.topk import largest_mask


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    weight_mask: Tensor | None,
    activation_mask: Tensor | None,
    schedule: Tensor | None,
    a: Arguments,
    moment: Moment,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, saved activation and record; see `torchswat.engine.ops`."""
    record = state.to("cpu", copy=True)
    iteration = int(record[ITERATION])
    number = max(0, iteration - 1) if moment.last else iteration
    sparsity, kept_weights, kept_activations = kept_now(a, schedule, number, weight.numel(), x.numel())
    record[ITERATION] = iteration + moment.advances
    if moment.remembers:
        put(record, SPARSITY, sparsity)
    put(record, WEIGHT_THRESHOLD, 0.0)
    put(record, ACTIVATION_THRESHOLD, 0.0)
    record[WEIGHT_TIES], record[ACTIVATION_COUNT], record[PRODUCTS] = -1, 0, 0

    def select(tensor: Tensor, memory: int, kept: int, mask: Tensor | None, what: str) -> Tensor:
        if mask is None:
            mask, threshold, ties = _select(tensor, record, memory, kept, sparsity, number, moment, a, what)
            if memory == WEIGHT:
                put(record, WEIGHT_THRESHOLD, threshold)
                record[WEIGHT_TIES] = ties
        elif tensor.isnan().any():
            raise not_a_number(f"the {what} of layer {a.name!r}", tensor.numel())
        if moment.remembers:
            put(record, memory + 2, int(mask.count_nonzero()) / max(1, tensor.numel()))
        return mask

    used = weight
    if a.slots & (FORWARD_WEIGHT | GRAD_INPUT_WEIGHT):
        mask = select(weight, WEIGHT, kept_weights, weight_mask, "weight")
        if a.slots & FORWARD_WEIGHT:
            used = torch.where(mask, weight, weight.new_zeros(()))
    kept = x.new_empty(0, dtype=torch.uint8)
    if a.save and a.slots & GRAD_WEIGHT_ACTIVATION:
        mask = select(x, ACTIVATION, kept_activations, activation_mask, "input")
        kept, count = saved.keep_flat(None, x, mask, 0.0, a.room)
        record[ACTIVATION_COUNT] = count
        if a.chwn and a.room >= 0:  # the size that was said of the other format, which is the larger one
            full = x.new_empty(saved.chwn_bytes(x.shape, a.room), dtype=torch.uint8)
            full[: kept.numel()] = kept
            kept = full
    if x.dim() == 2:
        return torch.nn.functional.linear(x, used, bias), kept, record
    y = dense.convolution(x, used, bias, a.stride, a.padding, a.dilation, a.groups)
    if a.chwn and not layout.is_chwn(y):
        y = layout.empty_chwn(y.shape, y).copy_(y)
    return y, kept, record


def _select(
    tensor: Tensor,
    record: Tensor,
    memory: int,
    kept: int,
    sparsity: float,
    number: int,
    moment: Moment,
    a: Arguments,
    what: str,
) -> tuple[Tensor, float, int]:
    """Return the mask of one operand, the threshold, and how many of those equal to it are kept (-1: all)."""
    magnitudes = tensor.detach().abs()
    if magnitudes.numel() and magnitudes.isnan().any():
        raise not_a_number(f"the {what} of layer {a.name!r}", tensor.numel())
    last = get(record, memory)
    due = a.period == 1 or number < a.warmup or number % a.period == 0
    if not due and last >= 0:
        return magnitudes >= last, last, -1
    mask, threshold, ties = largest_mask(tensor, kept)
    if not a.search & EXACT:
        mask, ties = magnitudes >= threshold, -1
    if moment.remembers:
        put(record, memory, threshold)
        put(record, memory + 1, sparsity)
    return mask, threshold, ties


def backward(
    gradient: Tensor,
    x: Tensor | None,
    weight: Tensor,
    kept: Tensor,
    record: Tensor,
    weight_mask: Tensor | None,
    input_size: tuple[int, ...],
    input_layout: int,
    a: Any,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias that are `wanted`."""
    grad_input = grad_weight = grad_bias = None
    linear = gradient.dim() == 2
    if wanted[0]:
        used = weight
        if a.slots & GRAD_INPUT_WEIGHT:
            mask = weight_mask
            if mask is None:
                threshold, ties = get(record, WEIGHT_THRESHOLD), int(record[WEIGHT_TIES])
                if ties < 0:
                    mask = weight.abs() >= threshold
                else:
                    mask = largest_mask(weight, _rank(weight, threshold, ties))[0]
            used = torch.where(mask, weight, weight.new_zeros(()))
        if linear:
            grad_input = gradient @ used
        else:
            like = layout.empty_in(input_layout, input_size, gradient)
            found = _products(gradient, like, used, a, (True, False, False))[0]
            grad_input = found if layout.layout_of(found) == input_layout else like.copy_(found)
    if wanted[1]:
        if a.slots & GRAD_WEIGHT_ACTIVATION:
            x = saved.restore_flat(None, kept, layout.empty_in(input_layout, input_size, gradient))
        assert x is not None
        if linear:
            grad_weight = gradient.T @ x
        else:
            grad_weight = _products(gradient, x, weight, a, (False, True, False))[1].contiguous()
    if wanted[2]:
        grad_bias = gradient.sum(0 if linear else (0, 2, 3))
    return grad_input, grad_weight, grad_bias


def _rank(weight: Tensor, threshold: float, ties: int) -> int:
    return int((weight.abs() > threshold).count_nonzero()) + ties


def _products(gradient: Tensor, x: Tensor, weight: Tensor, a: Any, wanted: tuple[bool, bool, bool]):
    geometry = a.stride, a.padding, a.dilation, a.groups
    return dense.convolution_backward(gradient, x, weight, *geometry, wanted)
