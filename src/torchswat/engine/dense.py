"""Torch's dense convolutions, with the zeros before a map and those after it counted apart.

A padding is (height, width), the same before and after, or (top, left, bottom, right): of either, ``padding[:2]`` is
what stands before and ``padding[-2:]`` what stands after.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[int, int]
Padding = tuple[int, ...]
_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return the output, (N, K, P, Q), of `x` (N, C, H, W) and `weight` (K, C / groups, R, S)."""
    if len(padding) == 4:
        x, padding = _padded(x, padding), (0, 0)
    return _convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias that are `wanted`."""
    height, width = x.shape[2:]
    around = padding if len(padding) == 4 else None
    if around is not None:
        x, padding = _padded(x, around), (0, 0)
    biases = [len(weight)] if wanted[2] else None
    geometry = stride, padding, dilation, False, (0, 0), groups
    grads = _convolution_backward(gradient, x, weight, biases, *geometry, wanted)
    if around is None or not wanted[0]:
        return grads
    top, left = around[:2]
    return grads[0][:, :, top : top + height, left : left + width], *grads[1:]


def _padded(x: Tensor, padding: Padding) -> Tensor:
    top, left, bottom, right = padding
    return torch.constant_pad_nd(x, (left, right, top, bottom))
