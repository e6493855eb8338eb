"""A convolution with sparse weights as an operation of torch, for programs of `torch.export`.

Weights travel as they lie in the file (values, and one bit a weight), which any machine can read; they are
packed for the compiled engine when they are met first. Import this module before `torch.export.load`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.weak import WeakTensorKeyDictionary

from torchswat.engine.kernels import as_chwn, empty_chwn, output_size
from torchswat.engine.loader import native_for
from torchswat.errors import InvalidValue
from torchswat.runtime import lists
from torchswat.runtime.graph import INPUT, OPERATIONS, Graph
from torchswat.runtime.plain import BODIES

_packed: Any = WeakTensorKeyDictionary()  # by the values: lists by instruction set and geometry


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
    size = output_size(list(x.shape), weight_size, stride, padding)
    native = native_for(x, values, bias, residual)
    if native is None or min(size) < 1:
        result = F.conv2d(x, _dense(values, bits, weight_size), bias, stride, padding)
        result = result if residual is None else result + residual
        return empty_chwn(*size, like=x).copy_(result.relu() if relu else result)
    x, bias = as_chwn(x), bias.contiguous()
    residual = None if residual is None else as_chwn(residual)
    shape = native.ConvShape(*x.shape, weight_size[0], *weight_size[2:], *stride, *padding, *size[2:])
    known = _packed.setdefault(values, {})
    key = native.isa(), *x.shape[1:], *weight_size, *stride, *padding
    if key not in known:
        known[key] = lists.for_samples(native, shape, _dense(values, bits, weight_size))
    result, threads = empty_chwn(*size, like=x), torch.get_num_threads()
    workspace = torch.empty(native.conv_workspace(shape, threads))
    native.conv_forward_fused(
        shape,
        x.data_ptr(),
        *known[key].addresses(),
        bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        relu,
        result.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return result


@sparse_conv2d.register_fake
def _(x, values, bits, bias, residual, weight_size, stride, padding, relu):
    return empty_chwn(*output_size(list(x.shape), weight_size, stride, padding), like=x)


def _dense(values: Tensor, bits: Tensor, size: list[int]) -> Tensor:
    kept = np.unpackbits(bits.numpy(), count=math.prod(size), bitorder="little").view(bool)
    if int(kept.sum()) != values.numel():
        raise InvalidValue(f"{int(kept.sum())} bits are set for {values.numel()} values of a weight {size}")
    dense = np.zeros(kept.shape, np.float32)
    dense[kept] = values.numpy()
    return torch.from_numpy(dense).view(size)


class Program(nn.Module):
    """A graph as a module that `torch.export.export` can read: its sparse convolutions are `sparse_conv2d`.

    Parameters
    ----------
    graph : Graph
        The operations.
    tensors : dict of str to Tensor
        Their dense weights.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        for node in graph.nodes:
            for part in OPERATIONS[node.operation].tensors:
                self._keep(f"{node.name}.{part}", tensors[f"{node.name}.{part}"])

    def _keep(self, name: str, tensor: Tensor) -> None:
        if tensor.dim() != 4:
            self.register_buffer(_buffer(name), tensor)
            return
        kept = tensor != 0
        self.register_buffer(_buffer(f"{name}.values"), tensor[kept])
        bits = np.packbits(kept.flatten().numpy(), bitorder="little")
        self.register_buffer(_buffer(f"{name}.bits"), torch.from_numpy(bits))
        self.sizes = {**getattr(self, "sizes", {}), name: list(tensor.shape)}

    def forward(self, images: Tensor) -> Tensor:
        results = {INPUT: images}
        for node in self.graph.nodes:
            inputs, settings = [results[name] for name in node.inputs], node.settings
            parts = OPERATIONS[node.operation].tensors
            if node.operation == "conv2d":
                names = ("weight.values", "weight.bits", "bias")
                values, bits, bias = (getattr(self, _buffer(f"{node.name}.{name}")) for name in names)
                residual = inputs[1] if len(inputs) > 1 else None
                size = self.sizes[f"{node.name}.weight"]
                stride = [settings["stride_h"], settings["stride_w"]]
                padding = [settings["padding_h"], settings["padding_w"]]
                relu = bool(settings["relu"])
                results[node.name] = sparse_conv2d(
                    inputs[0], values, bits, bias, residual, size, stride, padding, relu
                )
                continue
            tensors = [getattr(self, _buffer(f"{node.name}.{part}")) for part in parts]
            result = BODIES[node.operation](settings, inputs, tensors)
            results[node.name] = F.relu(result) if settings.get("relu") else result
        return results[self.graph.nodes[-1].name]


def _buffer(name: str) -> str:
    """Return the name of a tensor as a buffer's, which may hold no dots."""
    return name.replace(".", "__")
