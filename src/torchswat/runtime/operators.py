"""A convolution with sparse weights as an operation of torch, for programs of `torch.export`.

Weights travel as they lie in the file (values, and one bit a weight), which any machine can read; they are
packed for the compiled engine when they are met first. Import this module before `torch.export.load`.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.weak import WeakTensorKeyDictionary

from torchswat.engine.layout import as_chwn, empty_chwn
from torchswat.engine.loader import native_for
from torchswat.errors import InvalidValue
from torchswat.runtime import lists
from torchswat.runtime.memory import aligned

_packed: Any = WeakTensorKeyDictionary()  # by the values: lists by instruction set and geometry


def _output_size(
    x: Tensor, weight_size: list[int], stride: list[int], padding: list[int]
) -> tuple[int, int, int, int]:
    height, width = ((x.shape[2 + i] + 2 * padding[i] - weight_size[2 + i]) // stride[i] + 1 for i in (0, 1))
    return x.shape[0], weight_size[0], height, width


@custom_op("torchswat::sparse_conv2d", mutates_args=())
def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
    relu: bool,
) -> Tensor:
    """Convolve `x`, (N, C, H, W), with a weight of `weight_size` that is kept as values and bits.

    The residual is added and the ReLU taken last. The result is CHWN.
    """
    size = _output_size(x, weight_size, stride, padding)
    native = native_for(x, values, bias, residual)
    if native is None or min(size) < 1:
        result = F.conv2d(x, _dense(values, bits, weight_size), bias, stride, padding)
        result = result if residual is None else result + residual
        return empty_chwn(size, x).copy_(result.relu() if relu else result)
    x, bias = as_chwn(x), bias.contiguous()
    residual = None if residual is None else as_chwn(residual)
    shape = native.ConvShape(*x.shape, weight_size[0], *weight_size[2:], *stride, *padding, *size[2:])
    known = _packed.setdefault(values, {})
    key = native.isa(), *x.shape[1:], *weight_size, *stride, *padding
    if key not in known:
        dense = aligned(_dense(values, bits, weight_size).numpy())
        known[key] = lists.for_samples(native, shape, dense, (1, 1), torch.get_num_threads())
    result, threads = empty_chwn(size, x), torch.get_num_threads()
    workspace = torch.empty(native.conv_workspace(shape, threads))
    native.conv_forward_fused(
        shape,
        x.data_ptr(),
        *known[key].addresses(),
        bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        native.Activation(1, 0.0, math.inf) if relu else native.Activation(),
        result.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return result


@sparse_conv2d.register_fake
def _(x, values, bits, bias, residual, weight_size, stride, padding, relu):
    return empty_chwn(_output_size(x, weight_size, stride, padding), x)


def _dense(values: Tensor, bits: Tensor, size: list[int]) -> Tensor:
    kept = np.unpackbits(bits.numpy(), count=math.prod(size), bitorder="little").view(bool)
    if int(kept.sum()) != values.numel():
        raise InvalidValue(f"{int(kept.sum())} bits are set for {values.numel()} values of a weight {size}")
    dense = np.zeros(kept.shape, np.float32)
    dense[kept] = values.numpy()
    return torch.from_numpy(dense).view(size)


class SparseConv2d(nn.Module):
    """A convolution whose weight is kept as values and bits.

    Parameters
    ----------
    layer : Conv2d
        Without groups, dilation and padding modes.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        kept = weight != 0
        bits = np.packbits(kept.flatten().numpy(), bitorder="little")
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        for name, tensor in (("values", weight[kept]), ("bits", torch.from_numpy(bits)), ("bias", bias)):
            self.register_buffer(name, tensor.clone())
        self.size: list[int] = list(weight.shape)
        self.stride: list[int] = list(layer.stride)
        self.padding: list[int] = list(map(int, layer.padding))

    def forward(self, x: Tensor) -> Tensor:
        values, bits, bias = self.get_buffer("values"), self.get_buffer("bits"), self.get_buffer("bias")
        return sparse_conv2d(x, values, bits, bias, None, self.size, self.stride, self.padding, False)


def with_sparse_convolutions(model: nn.Module) -> nn.Module:
    """Return a copy of a plain, pruned `model` whose convolutions are `SparseConv2d`, for `torch.export`.

    Batch norm is folded into the convolution before it where `torch.fx` can follow the model.
    """
    model = copy.deepcopy(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.fx.experimental import optimization  # warns while it is imported

            model = optimization.fuse(model)
        except Exception:  # whatever a user's forward may raise on symbolic values
            model = copy.deepcopy(model)
    if _is_plain(model):
        return SparseConv2d(model)  # type: ignore[arg-type]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_plain(child):
                setattr(parent, name, SparseConv2d(child))  # type: ignore[arg-type]
    return model


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    return layer.groups == 1 and set(layer.dilation) == {1}
