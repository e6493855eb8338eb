"""The three products of a layer in plain torch: what every device, dtype and geometry runs on.

    forward      Y  = conv(a, w) + bias           a  # (N, C, H, W)   w  # (K, C / groups, R, S)
    grad_input   dX = conv_transpose(g, w)        g  # (N, K, P, Q)
    grad_weight  dW = correlate(a, g)

Products decide in which form they take an operand: here as a dense tensor with zeros where a selection
dropped entries. What is dense with zeros is saved for backward
as its values and one bit an entry (`torchswat.engine.kept`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from torchswat.engine import dense
from torchswat.engine.topk import Selection

Pair = tuple[int, int]
Form = tuple[Tensor, ...]
"""An operand as a product takes it: the tensors that an autograd node saves."""


class Products:
    """What every kind of layer shares."""

    bias_dims: tuple[int, ...] = (0,)
    """Dimensions of the output that share a bias."""

    def forward_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        """Return the weight in the form that `forward` takes."""
        return (weight if selection is None else selection.kept(weight),)

    def grad_input_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        """Return the weight in the form that `grad_input` takes."""
        return self.forward_weight(weight, selection)

    def grad_weight_activation(self, activation: Tensor, selection: Selection | None) -> Form:
        """Return the activation in the form that `grad_weight` takes."""
        return (activation if selection is None else selection.kept(activation),)

    def forward(self, activation: Tensor, weight: Form, bias: Tensor | None) -> Tensor:
        """Return the output."""
        raise NotImplementedError

    def grad_input(self, gradient: Tensor, weight: Form, like: Tensor) -> Tensor:
        """Return the gradient of the input, shaped like `like` (whose entries are not read)."""
        raise NotImplementedError

    def grad_weight(self, gradient: Tensor, activation: Form, like: Tensor) -> Tensor:
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

    def forward(self, activation: Tensor, weight: Form, bias: Tensor | None) -> Tensor:
        return dense.convolution(activation, weight[0], bias, *self._geometry)

    def grad_input(self, gradient: Tensor, weight: Form, like: Tensor) -> Tensor:
        return self._backward(gradient, like, weight[0], (True, False, False))[0]

    def grad_weight(self, gradient: Tensor, activation: Form, like: Tensor) -> Tensor:
        return self._backward(gradient, activation[0], like, (False, True, False))[1]

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

    def forward(self, activation: Tensor, weight: Form, bias: Tensor | None) -> Tensor:
        return F.linear(activation, weight[0], bias)

    def grad_input(self, gradient: Tensor, weight: Form, like: Tensor) -> Tensor:
        return gradient @ weight[0]

    def grad_weight(self, gradient: Tensor, activation: Form, like: Tensor) -> Tensor:
        return gradient.T @ activation[0]
