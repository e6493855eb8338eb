"""Layers of the algorithms that select forward activations, gradients or outputs: always dense products.

`torchswat.engine.ops` covers the rows of the table whose operands are weights and saved activations. The
others (meProp, DSG, forward-activation) multiply dense operands with zeros here, in plain torch: the arithmetic
is right, no time is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchswat.algorithms import Algorithm
from torchswat.engine.function import no_forward_mode
from torchswat.engine.once import differentiable_once
from torchswat.engine.products import Products

GradientMask = Callable[[Tensor], "Tensor | None"]
"""Returns which entries of an output gradient are selected; None for all, where it has NaN."""


def zeroed(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Return `tensor` with zeros where `mask` is false (where there was an infinity as well)."""
    return tensor if mask is None else torch.where(mask, tensor, tensor.new_zeros(()))


class Masks(NamedTuple):
    """The masks of one pass; None where nothing is selected."""

    activation: Tensor | None
    weight: Tensor | None
    output: Tensor | None
    gradient: GradientMask | None
    """Made when the gradient is there."""


class MaskedProducts(torch.autograd.Function):
    """The three products with the operands masked that a row of the table names."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        products: Products,
        row: Algorithm,
        masks: Masks,
    ) -> Tensor:
        used = zeroed(activation, masks.activation if row.forward_activation else None)
        output = products.forward(used, zeroed(weight, masks.weight if row.forward_weight else None), bias)
        ctx.products, ctx.row, ctx.gradient_mask = products, row, masks.gradient
        saved = zeroed(activation, masks.activation if row.grad_weight_activation else None)
        weight_mask = masks.weight if row.grad_input_weight else None
        ctx.save_for_backward(saved, weight, weight_mask, masks.output)
        return zeroed(output, masks.output)

    jvp = staticmethod(no_forward_mode)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        activation, weight, weight_mask, output_mask = ctx.saved_tensors
        products, row = ctx.products, ctx.row
        gradient = zeroed(gradient, output_mask)
        mask = ctx.gradient_mask(gradient) if ctx.gradient_mask else None
        of_input, of_weight = (
            zeroed(gradient, mask if selected else None)
            for selected in (row.grad_input_gradient, row.grad_weight_gradient)
        )
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = products.grad_input(of_input, zeroed(weight, weight_mask), activation)
        if ctx.needs_input_grad[1]:
            grad_weight = products.grad_weight(of_weight, activation, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(products.bias_dims)
        return grad_input, grad_weight, grad_bias, None, None, None
