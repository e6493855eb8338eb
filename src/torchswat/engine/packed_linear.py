"""The products of a fully connected layer on packed weights and compressed activations.

A matrix (N, C) is a picture of one position, and its product with a weight a 1x1 convolution: this is the
adaptor between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchswat.engine.packed import PackedConv2dProducts
from torchswat.engine.products import Form, Products
from torchswat.engine.topk import Selection


def _as_maps(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def _as_matrix(maps: Tensor) -> Tensor:
    return maps[:, :, 0, 0]


def _of_maps(selection: Selection | None) -> Selection | None:
    if selection is None or selection.mask is None:
        return selection
    return replace(selection, mask=_as_maps(selection.mask))


@dataclass(frozen=True)
class PackedLinearProducts(Products):
    """The products of a fully connected layer, each sparse or dense as `convolution` chooses."""

    convolution: PackedConv2dProducts
    packs_weights = True

    @property
    def compresses(self) -> bool:  # type: ignore[override]
        """Whether the activation kept is its kept values only."""
        return self.convolution.compresses

    def adapt(self, activation: Tensor) -> Tensor:  # activation  # (N, C)
        return _as_matrix(self.convolution.adapt(_as_maps(activation)))

    def forward_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        return self.convolution.forward_weight(_as_maps(weight), _of_maps(selection))

    def grad_input_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        return self.convolution.grad_input_weight(_as_maps(weight), _of_maps(selection))

    def grad_weight_activation(self, activation: Tensor, selection: Selection | None) -> Form:
        return self.convolution.grad_weight_activation(_as_maps(activation), _of_maps(selection))

    def forward(self, activation: Tensor, weight: Form, bias: Tensor | None) -> Tensor:
        output = self.convolution.forward(_as_maps(activation), weight, bias)
        # Rows, as what follows expects, and no view: autograd lets nobody change one in place that a custom
        # function returned.
        return _as_matrix(output).clone(memory_format=torch.contiguous_format)

    def grad_input(self, gradient: Tensor, weight: Form, like: Tensor) -> Tensor:
        return _as_matrix(self.convolution.grad_input(_as_maps(gradient), weight, _as_maps(like)))

    def grad_weight(self, gradient: Tensor, activation: Form, like: Tensor) -> Tensor:
        return _as_matrix(self.convolution.grad_weight(_as_maps(gradient), activation, _as_maps(like)))
