"""The products of a convolution on packed weights and compressed activations in the CHWN layout.

Each of the three products runs sparse or dense, whichever a `Choice` says is faster. Dense ones convert to
the layout in which torch's convolution is fast, but for 1x1 kernels, which are matrix products as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchswat.engine import kernels as ops
from torchswat.engine.products import Conv2dProducts, Form
from torchswat.engine.topk import SMALLEST, Selection


@dataclass(frozen=True)
class Choice:
    """Which products run on sparse operands; the others run on dense ones with zeros."""

    forward: bool
    grad_input: bool
    grad_weight: bool


ALL_SPARSE, ALL_DENSE = Choice(True, True, True), Choice(False, False, False)


@dataclass(frozen=True)
class Shape:
    """The sizes of one convolution."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, ...]
    """Of height and width, or top, left, bottom and right (`torchswat.engine.dense`)."""
    narrow: bool = False
    """Whether activations and gradients are bfloat16 instead of float32."""
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        n, c, h, w = self.input
        k, _, r, s = self.weight
        stride, padding, dilation = (
            "".join(map(str, sides)) for sides in (self.stride, self.padding, self.dilation)
        )
        gaps = f"-d{dilation}" if self.is_dilated else ""
        return f"{n}x{c}x{h}x{w}-{k}x{r}x{s}-s{stride}-p{padding}{gaps}{'-bf16' * self.narrow}"

    @property
    def is_dilated(self) -> bool:
        """Whether the taps of the kernel do not lie side by side."""
        return self.dilation != (1, 1)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the kernel with the gaps between its taps."""
        height, width = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight[2:], strict=True))
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a matrix product: a 1x1 kernel without padding."""
        return self.weight[2:] == (1, 1) and self.padding == (0, 0)


def shape_of(
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    groups: int = 1,
    narrow: bool = False,
) -> Shape:
    """Return the shape of a layer's products, or of those of each of its groups.

    A fully connected layer is a 1x1 convolution on maps of one position.

    Examples
    --------
    >>> str(shape_of((16, 8, 6, 6), (12, 4, 3, 3), (1, 1), (1, 1), (1, 1), groups=2))
    '16x4x6x6-6x3x3-s11-p11'
    """
    n, c, h, w = (*input_size, 1, 1)[:4]
    k, _, r, s = (*weight_size, 1, 1)[:4]
    c, k = c // groups, k // groups
    return Shape((n, c, h, w), (k, c, r, s), stride, padding, narrow, dilation)


@dataclass(frozen=True)
class PackedConv2dProducts(Conv2dProducts):
    """A convolution without groups and dilation, its operands packed where that is faster."""

    shape: Shape = field(kw_only=True)
    choice: Choice = field(kw_only=True, default=ALL_SPARSE)
    packs_weights = True

    @classmethod
    def of(cls, shape: Shape, choice: Choice) -> PackedConv2dProducts:
        """Make the products of a shape."""
        return cls(shape.stride, shape.padding, shape=shape, choice=choice)

    @property
    def compresses(self) -> bool:  # type: ignore[override]
        """Whether the activation kept is its kept values only."""
        return self.choice.grad_weight

    def adapt(self, activation: Tensor) -> Tensor:
        return ops.as_chwn(activation)

    # ---- forms: one tensor is dense, three are packed

    def forward_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        return self._form(weight, selection, ops.FORWARD, self.choice.forward)

    def grad_input_weight(self, weight: Tensor, selection: Selection | None) -> Form:
        return self._form(weight, selection, ops.GRAD_INPUT, self.choice.grad_input)

    def _form(self, weight: Tensor, selection: Selection | None, product: int, sparse: bool) -> Form:
        if selection is None:
            return (weight,)
        return self._pack(weight, selection, (product,))[0] if sparse else (selection.kept(weight),)

    def _pack(self, weight: Tensor, selection: Selection, products: tuple[int, ...]) -> list[Form]:
        sizes = list(self.shape.input), list(self.stride), list(self.padding)
        return [*ops.packed_weights(weight, selection.mask, selection.limit, *sizes, products)]

    def grad_weight_activation(self, activation: Tensor, selection: Selection | None) -> Form:
        sparse = selection is not None and self.choice.grad_weight
        if not sparse and self.shape.is_pointwise:  # a strided 1x1 kernel meets a part of the positions
            if selection is not None and selection.mask is not None:
                selection = Selection(_strided(selection.mask, self.stride))
            activation = _strided(activation, self.stride)
        if selection is None:
            return (activation,)
        if not sparse:
            return (selection.kept(activation),)
        return ops.compressed(activation, selection.mask, _limit(selection))

    def grad_weight_activation_again(
        self, x: Tensor, scale: Tensor, shift: Tensor, selection: Selection
    ) -> Form:
        return ops.compressed_again(x, scale, shift, _limit(selection))

    # ---- products

    def forward(self, activation: Tensor, weight: Form, bias: Tensor | None) -> Tensor:
        if len(weight) == 3:
            return ops.conv2d_packed(activation, *weight, bias, *self._sizes())
        if self.shape.is_pointwise:
            return _matrix_forward(_strided(activation, self.stride), weight[0], bias)
        return ops.to_chwn(super().forward(ops.to_channels_last(activation), weight, bias))

    def grad_input(self, gradient: Tensor, weight: Form, like: Tensor) -> Tensor:
        gradient = self.adapt(gradient)
        if len(weight) == 3:
            return ops.conv2d_packed_grad_input(gradient, *weight, list(self.shape.input), *self._sizes())
        if self.shape.is_pointwise:
            return _matrix_grad_input(gradient, weight[0], self.shape.input, self.stride)
        like = ops.empty_channels_last(like)
        return ops.to_chwn(super().grad_input(ops.to_channels_last(gradient), weight, like))

    def grad_weight(self, gradient: Tensor, activation: Form, like: Tensor) -> Tensor:
        gradient = self.adapt(gradient)
        if len(activation) == 3:
            sizes = list(self.shape.input), *self._sizes()
            return ops.conv2d_compressed_grad_weight(*activation, gradient, *sizes)
        if self.shape.is_pointwise:
            return _matrix_grad_weight(gradient, activation[0])
        dense = (ops.to_channels_last(activation[0]),)
        return super().grad_weight(ops.to_channels_last(gradient), dense, like)

    def _sizes(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.shape.weight), list(self.stride), list(self.padding)


def _limit(selection: Selection) -> float:
    return max(selection.limit, SMALLEST)  # zeros add nothing to a product


def _rows(x: Tensor) -> Tensor:
    """View a CHWN tensor (N, C, H, W) as the matrix (C, H * W * N) that it is in memory."""
    return x.permute(1, 2, 3, 0).flatten(1)


def _strided(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Return the positions that a strided 1x1 kernel meets, CHWN."""
    if stride == (1, 1):
        return x
    return x[:, :, :: stride[0], :: stride[1]].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _matrix_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    n, _, h, w = x.shape
    matrix = weight.flatten(1)  # (K, C)
    result = ops.empty_chwn(n, len(weight), h, w, like=x)
    if bias is None:
        torch.mm(matrix, _rows(x), out=_rows(result))
    else:
        torch.addmm(bias.unsqueeze(1), matrix, _rows(x), out=_rows(result))
    return result


def _matrix_grad_input(
    gradient: Tensor, weight: Tensor, input_size: tuple, stride: tuple[int, int]
) -> Tensor:
    n, _, p, q = gradient.shape
    c = weight.shape[1]
    result = ops.empty_chwn(n, c, *input_size[2:], like=gradient)
    matrix = weight.flatten(1).T  # (C, K)
    if stride == (1, 1):
        torch.mm(matrix, _rows(gradient), out=_rows(result))
        return result
    rows = (matrix @ _rows(gradient)).view(c, p, q, n)
    result.zero_()[:, :, :: stride[0], :: stride[1]] = rows.permute(3, 0, 1, 2)
    return result


def _matrix_grad_weight(gradient: Tensor, x: Tensor) -> Tensor:
    return (_rows(gradient) @ _rows(x).T).view(gradient.shape[1], x.shape[1], 1, 1)
