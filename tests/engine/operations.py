"""Calls of ``torchswat::sparse_forward`` and ``sparse_backward``, and their truth in float64."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from conftest import instruction_sets
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from torchswat.engine import layout, ops  # noqa: F401 - defines the operations
from torchswat.engine.arguments import (
    COUNTS,
    EXACT,
    FORWARD_WEIGHT,
    GRAD_INPUT_WEIGHT,
    GRAD_WEIGHT_ACTIVATION,
    Arguments,
    kept_count,
)
from torchswat.engine.loader import engine
from torchswat.engine.state import new_state

BODIES = ["reference", *(isa for isa in instruction_sets() if isa != "none")]
SWAT = FORWARD_WEIGHT | GRAD_INPUT_WEIGHT | GRAD_WEIGHT_ACTIVATION
Pair = tuple[int, int]


@contextmanager
def body(name: str) -> Iterator[None]:
    """Run the operations by plain torch or by the kernels of one instruction set."""
    if name == "reference":
        with engine("reference"):
            yield
        return
    module = importlib.import_module("torchswat.engine._native")
    before = module.isa()
    module.force(name)
    try:
        with engine("native"):
            yield
    finally:
        module.force(before)


@dataclass(frozen=True)
class Call:
    """One call of the operation: sizes, geometry and settings."""

    input: tuple[int, ...]
    filters: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    sparsity: float = 0.7
    slots: int = SWAT
    products: int = 7
    bias: bool = True
    exact: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def weight_size(self) -> tuple[int, ...]:
        if len(self.input) == 2:
            return self.filters, self.input[1]
        return self.filters, self.input[1] // self.groups, *self.kernel

    @property
    def chwn(self) -> bool:
        return len(self.input) == 4 and self.products != 0

    def fits(self) -> bool:
        """Return whether the kernel is no larger than the padded input."""
        if len(self.input) == 2:
            return True
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return all(self.input[2 + i] + 2 * self.padding[i] >= reach[i] for i in (0, 1))

    def operands(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x, weight and bias."""
        draw = torch.Generator().manual_seed(seed)
        x, weight = (
            torch.randn(size, generator=draw, dtype=self.dtype) for size in (self.input, self.weight_size)
        )
        return x, weight, torch.randn(self.filters, generator=draw, dtype=self.dtype) if self.bias else None

    def arguments(self) -> Arguments:
        """Return the arguments behind the tensors."""
        entries, weights = torch.Size(self.input).numel(), torch.Size(self.weight_size).numel()
        kept = kept_count(entries, self.sparsity)
        return Arguments(
            self.sparsity, kept_count(weights, self.sparsity), kept, kept if self.exact else -1,
            self.stride, self.padding, self.dilation, self.groups, self.slots, EXACT * self.exact, 1, 0,
            self.products, self.chwn, COUNTS, save=True, recompute=False, name="layer",
        )  # fmt: skip

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        masks: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``torchswat::sparse_forward`` returns."""
        return torch.ops.torchswat.sparse_forward(
            x, weight, bias, new_state(), *masks, None, *self.arguments()
        )

    def backward_arguments(
        self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Tensor, record: Tensor
    ) -> list[Any]:
        """Return the arguments of ``torchswat::sparse_backward``."""
        dense = None if self.slots & GRAD_WEIGHT_ACTIVATION else x
        order = layout.layout_of(x) if x.dim() == 4 else layout.NCHW
        geometry = self.stride, self.padding, self.dilation, self.groups, self.slots, self.chwn
        wanted = [True, True, self.bias]
        return [gradient, dense, weight, saved, record, None, list(x.shape), order, *geometry, wanted]


def top(tensor: Tensor, sparsity: float) -> Tensor:
    """Return `tensor` in float64 with zeros where a stable sort by magnitude puts it behind the k first."""
    flat = tensor.detach().double().reshape(-1)
    order = flat.abs().argsort(descending=True, stable=True)
    kept = torch.zeros_like(flat)
    first = order[: kept_count(flat.numel(), sparsity)]
    kept[first] = flat[first]
    return kept.view(tensor.shape)


def truth(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: Tensor) -> list[Tensor]:
    """Return output and gradients of input, weight and bias in float64."""
    matrix = x.dim() == 2
    x4, w4, g4 = (t.double()[..., None, None] if matrix else t.double() for t in (x, weight, gradient))
    selected = top(weight, call.sparsity).view(w4.shape)
    used, back = (selected if call.slots & slot else w4 for slot in (FORWARD_WEIGHT, GRAD_INPUT_WEIGHT))
    active = top(x, call.sparsity).view(x4.shape) if call.slots & GRAD_WEIGHT_ACTIVATION else x4
    geometry = call.stride, call.padding, call.dilation, call.groups
    b = None if bias is None else bias.double()
    found = [
        torch.conv2d(x4, used, b, *geometry),
        conv2d_input(x4.shape, back, g4, *geometry),
        conv2d_weight(active, w4.shape, g4, *geometry),
    ]
    shapes = gradient.shape, x.shape, weight.shape
    return [t.reshape(s) for t, s in zip(found, shapes, strict=True)] + (
        [g4.sum((0, 2, 3))] if call.bias else []
    )


def compiled(call: Call) -> Call:
    """Return the call with products that its geometry has."""
    plain = call.dtype is torch.float32
    return call if plain else replace(call, products=0)
