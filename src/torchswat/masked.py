"""Layers of algorithms that select forward activations, output gradients or outputs: dense products.

`torchswat.engine.ops` covers the rows of the table whose operands are weights and saved activations. The
others (meProp, DSG, forward-activation) multiply dense operands with zeros here, in plain torch: the
arithmetic is right, no time is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchswat.engine.function import differentiable_once, no_forward_mode
from torchswat.engine.products import Products

GradientMask = Callable[[Tensor], "Tensor | None"]
"""Returns which entries of an output gradient are selected; None for all, where it has NaN."""


def zeroed(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Return `tensor` with zeros where `mask` is false (where there was an infinity as well)."""
    return tensor if mask is None else torch.where(mask, tensor, tensor.new_zeros(()))


class MaskedProducts(torch.autograd.Function):
    """The three products with some operands masked; the gradient's mask is made when it is there."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        products: Products,
        activation_mask: Tensor | None,
        output_mask: Tensor | None,
        gradient_mask: GradientMask | None,
        of_input: bool,
        of_weight: bool,
    ) -> Tensor:
        ctx.products, ctx.gradient_mask, ctx.of = products, gradient_mask, (of_input, of_weight)
        ctx.save_for_backward(activation, weight, output_mask)
        output = products.forward(zeroed(activation, activation_mask), (weight,), bias)
        return zeroed(output, output_mask)

    jvp = staticmethod(no_forward_mode)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        activation, weight, output_mask = ctx.saved_tensors
        products: Products = ctx.products
        gradient = zeroed(gradient, output_mask)
        mask = ctx.gradient_mask(gradient) if ctx.gradient_mask else None
        of_input, of_weight = (zeroed(gradient, mask) if wanted else gradient for wanted in ctx.of)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = products.grad_input(of_input, (weight,), activation)
        if ctx.needs_input_grad[1]:
            grad_weight = products.grad_weight(of_weight, (activation,), weight)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(products.bias_dims)
        return grad_input, grad_weight, grad_bias, *[None] * 6
