"""The three products of a layer in plain torch: what every device, dtype and geometry runs on.

    forward      Y  = conv(a, w) + bias           a  # (N, C, H, W)   w  # (K, C / groups, R, S)
    grad_input   dX = conv_transpose(g, w)        g  # (N, K, P, Q)
    grad_weight  dW = correlate(a, g)

Each takes its operands as they come, dense or with zeros where a selection dropped entries; dense torch
does the arithmetic, so that nothing is saved but nothing is wrong either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv2dProducts:
    """The products of a two-dimensional convolution with zero padding."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def forward(self, activation: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(activation, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def grad_input(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return self._backward(gradient, like, weight, (True, False))[0]

    def grad_weight(self, gradient: Tensor, activation: Tensor, like: Tensor) -> Tensor:
        return self._backward(gradient, activation, like, (False, True))[1]

    def grads(self, gradient: Tensor, activation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return both gradients in one call, as dense autograd does it."""
        grad_input, grad_weight = self._backward(gradient, activation, weight, (True, True))
        return grad_input, grad_weight

    def _backward(self, gradient: Tensor, activation: Tensor, weight: Tensor, wanted: tuple[bool, bool]):
        return torch.ops.aten.convolution_backward(
            *(gradient, activation, weight, None, self.stride, self.padding, self.dilation),
            *(False, (0, 0), self.groups, (*wanted, False)),
        )[:2]

    def bias_dims(self) -> tuple[int, ...]:
        """Return the dimensions of the output that share a bias."""
        return (0, 2, 3)


@dataclass(frozen=True)
class LinearProducts:
    """The products of a fully connected layer on a matrix of inputs."""

    def forward(self, activation: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(activation, weight, bias)

    def grad_input(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return gradient @ weight

    def grad_weight(self, gradient: Tensor, activation: Tensor, like: Tensor) -> Tensor:
        return gradient.T @ activation

    def grads(self, gradient: Tensor, activation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return both gradients."""
        return self.grad_input(gradient, weight, activation), self.grad_weight(gradient, activation, weight)

    def bias_dims(self) -> tuple[int, ...]:
        """Return the dimensions of the output that share a bias."""
        return (0,)


Products = Conv2dProducts | LinearProducts
