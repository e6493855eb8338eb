"""The three products of a layer in plain torch: what every device, dtype and geometry runs on.

    forward      Y  = conv(a, w) + bias           a  # (N, C, H, W)   w  # (K, C / groups, R, S)
    grad_input   dX = conv_transpose(g, w)        g  # (N, K, P, Q)
    grad_weight  dW = correlate(a, g)

Operands are dense tensors, with zeros where a selection dropped entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from torchswat.engine import dense

Pair = tuple[int, int]


class Products:
    """What every kind of layer shares."""

    bias_dims: tuple[int, ...] = (0,)
    """Dimensions of the output that share a bias."""

    def forward(self, activation: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output."""
        raise NotImplementedError

    def grad_input(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of the input, shaped like `like` (whose entries are not read)."""
        raise NotImplementedError

    def grad_weight(self, gradient: Tensor, activation: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of the weight, shaped like `like` (whose entries are not read)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv2dProducts(Products):
    """The products of a two-dimensional convolution with zero padding."""

    stride: Pair = (1, 1)
    padding: dense.Padding = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias_dims: tuple[int, ...] = (0, 2, 3)

    def forward(self, activation: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return dense.convolution(activation, weight, bias, *self._geometry)

    def grad_input(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return self._backward(gradient, like, weight, (True, False, False))[0]

    def grad_weight(self, gradient: Tensor, activation: Tensor, like: Tensor) -> Tensor:
        return self._backward(gradient, activation, like, (False, True, False))[1]

    def _backward(
        self, gradient: Tensor, activation: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ):
        return dense.convolution_backward(gradient, activation, weight, *self._geometry, wanted)

    @property
    def _geometry(self) -> tuple[Pair, dense.Padding, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


@dataclass(frozen=True)
class LinearProducts(Products):
    """The products of a fully connected layer on a matrix of inputs."""

    def forward(self, activation: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(activation, weight, bias)

    def grad_input(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return gradient @ weight

    def grad_weight(self, gradient: Tensor, activation: Tensor, like: Tensor) -> Tensor:
        return gradient.T @ activation
