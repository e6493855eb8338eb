"""Dense products of a convolution whose activations lie as [C][H][W][N] in memory.

A 1x1 kernel is a matrix product on such operands as they are; other kernels convert to channels last, in which
torch's convolution is fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchswat.engine import dense, layout
from torchswat.engine.dense import Padding

Pair = tuple[int, int]


def is_pointwise(weight: Tensor, padding: Padding, groups: int) -> bool:
    """Return whether the convolution is a matrix product: a 1x1 kernel without padding and groups."""
    return groups == 1 and weight.shape[2:] == (1, 1) and padding == (0, 0)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return the output, (N, K, P, Q) as [K][P][Q][N], of a CHWN `x` (N, C, H, W)."""
    if is_pointwise(weight, padding, groups):
        return _matrix_forward(strided(x, stride), weight, bias)
    nhwc = layout.copy_to_channels_last(x)
    return layout.copy_to_chwn(dense.convolution(nhwc, weight, bias, stride, padding, dilation, groups))


def grad_input(
    gradient: Tensor,
    weight: Tensor,
    input_size: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return the gradient of the input, CHWN, from a CHWN `gradient` of the output."""
    if is_pointwise(weight, padding, groups):
        return _matrix_grad_input(gradient, weight, input_size, stride)
    like = layout.empty_channels_last(input_size, gradient)
    nhwc = layout.copy_to_channels_last(gradient)
    wanted = True, False, False
    grads = dense.convolution_backward(nhwc, like, weight, stride, padding, dilation, groups, wanted)
    return layout.copy_to_chwn(grads[0])


def grad_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Tensor:
    """Return the gradient of the weight, of which the shape alone is read, from two CHWN operands."""
    if is_pointwise(weight, padding, groups):
        rows = _rows(gradient) @ _rows(strided(x, stride)).T
        return rows.view(gradient.shape[1], x.shape[1], 1, 1)
    operands = layout.copy_to_channels_last(gradient), layout.copy_to_channels_last(x)
    wanted = False, True, False
    grads = dense.convolution_backward(*operands, weight, stride, padding, dilation, groups, wanted)
    return grads[1].contiguous()


def strided(x: Tensor, stride: Pair) -> Tensor:
    """Return the positions that a strided 1x1 kernel meets, CHWN."""
    if stride == (1, 1):
        return x
    return x[:, :, :: stride[0], :: stride[1]].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """View a CHWN tensor (N, C, H, W) as the matrix (C, H * W * N) that it is in memory."""
    return x.permute(1, 2, 3, 0).flatten(1)


def _matrix_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    n, _, h, w = x.shape
    matrix = weight.flatten(1)  # (K, C)
    result = layout.empty_chwn((n, len(weight), h, w), x)
    if bias is None:
        torch.mm(matrix, _rows(x), out=_rows(result))
    else:
        torch.addmm(bias.unsqueeze(1), matrix, _rows(x), out=_rows(result))
    return result


def _matrix_grad_input(gradient: Tensor, weight: Tensor, input_size: tuple[int, ...], stride: Pair) -> Tensor:
    n, _, p, q = gradient.shape
    c = weight.shape[1]
    result = layout.empty_chwn(input_size, gradient)
    matrix = weight.flatten(1).T  # (C, K)
    if stride == (1, 1):
        torch.mm(matrix, _rows(gradient), out=_rows(result))
        return result
    rows = (matrix @ _rows(gradient)).view(c, p, q, n)
    result.zero_()[:, :, :: stride[0], :: stride[1]] = rows.permute(3, 0, 1, 2)
    return result
