"""SWAT as the paper describes it, in dense torch, for any network; it shares no code with the package.

`emulate_` puts a function in the place of the forward of every Conv2d and Linear. The function multiplies
with masked weights, and its backward with masked weights and masked activations; the masks keep the
``n - floor(S * n)`` largest magnitudes, and of equal ones those of the lowest index.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Select = Callable[[Tensor, float], Tensor]


def largest(values: Tensor, sparsity: float) -> Tensor:
    """Return `values` with all but the largest set to zero."""
    return torch.where(_largest(values.detach().abs(), sparsity), values.detach(), 0)


def largest_blocks(weight: Tensor, sparsity: float, block: tuple[int, int], groups: int) -> Tensor:
    """Return `weight` with all blocks (filters, channels) but those of the largest sums set to zero."""
    weight = weight.detach()
    parts = [part.split(block[1], dim=1) for group in weight.chunk(groups) for part in group.split(block[0])]
    sums = torch.stack([torch.stack([tile.abs().sum((0, 1)) for tile in row]) for row in parts])
    kept = [
        torch.cat([flag.expand_as(tile) for flag, tile in zip(flags, row, strict=True)], 1)
        for flags, row in zip(_largest(sums, sparsity), parts, strict=True)
    ]
    return torch.where(torch.cat(kept), weight, 0)


def _largest(magnitudes: Tensor, sparsity: float) -> Tensor:
    """Return the mask of the largest."""
    entries, shape = magnitudes.numel(), magnitudes.shape
    count = max(1, entries - int(Fraction(str(sparsity)) * entries))
    magnitudes = magnitudes.flatten()
    threshold = torch.topk(magnitudes, count).values[-1]
    kept = magnitudes > threshold
    equal = (magnitudes == threshold).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return kept.view(shape)


class SwatProducts(torch.autograd.Function):
    """The three products of a layer that is linear in its input and in its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Product,
        sparsity: float,
        select: Select,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.product, ctx.has_bias = product, bias is not None
        selected = select(weight, sparsity)
        ctx.save_for_backward(largest(x, sparsity), selected)
        return product(x, selected, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
            output = ctx.product(x, weight, None)
            of_input, of_weight = torch.autograd.grad(output, (x, weight), gradient)
        of_bias = None
        if ctx.has_bias:
            channels_last = gradient.movedim(1, -1) if ctx.product.__name__ == "convolve" else gradient
            of_bias = channels_last.reshape(-1, channels_last.shape[-1]).sum(0)
        return None, None, None, of_input, of_weight, of_bias


def _convolution(layer: nn.Conv2d) -> Product:
    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = layer.padding
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    return convolve


def _emulated(layer: nn.Module, product: Product, sparsity: float, select: Select, x: Tensor) -> Tensor:
    return SwatProducts.apply(product, sparsity, select, x, layer.weight, layer.bias)  # type: ignore[return-value]


def emulate_(model: nn.Module, sparsity: float, block: tuple[int, int] | None = None) -> nn.Module:
    """Let every layer of exactly the class Conv2d or Linear compute as SWAT does, in place.

    Weights are selected one by one, or in blocks.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d:
            product = _convolution(module)
        elif type(module) is nn.Linear:
            product = F.linear
        else:
            continue
        select = largest
        if block is not None:
            groups = getattr(module, "groups", 1)
            select = functools.partial(largest_blocks, block=block, groups=groups)
        module.forward = functools.partial(_emulated, module, product, sparsity, select)  # type: ignore[method-assign]
    return model
