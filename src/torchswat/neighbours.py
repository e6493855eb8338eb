"""What stands between sparse layers, in the layout that the engine works in.

Batch norm, ReLU and pooling are bound by memory, so they are worth their own kernels where a sparse layer
of the compiled engine hands them a batch-innermost tensor; any other input takes torch's own path. A batch
norm that is only read by a ReLU does both in one pass, and keeps one bit an entry for the backward pass
instead of the ReLU's output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from torchswat.engine import ops
from torchswat.engine.loader import native, native_for

WORD = 64  # entries of one word of a ReLU's bits


def _takes(x: Tensor, *parameters: Tensor | None) -> bool:
    """Tell whether the compiled kernels take `x`: it is batch-innermost, of float32, and eager."""
    if torch.compiler.is_compiling() or x.dim() != 4 or len(x) < 2 or not ops.is_inner(x):
        return False
    return native_for(x, *parameters) is not None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits(channels: int, length: int) -> Tensor:
    return torch.empty(channels, -(-length // WORD), dtype=torch.int64)


class _BatchNorm(torch.autograd.Function):
    """Training batch norm with the ReLU behind it, where `relu` says so."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight, bias, running_mean, running_var, eps: float, momentum: float, relu: bool
    ):
        channels, length = x.shape[1], x.numel() // x.shape[1]
        y, positive = torch.empty_like(x), _bits(channels, length) if relu else None
        mean, inverse_deviation = torch.empty(channels), torch.empty(channels)
        native().batch_norm_forward(  # type: ignore[union-attr]
            *(x.data_ptr(), channels, length, _address(weight), _address(bias), eps, 0, relu, y.data_ptr()),
            *(_address(t) for t in (positive, mean, inverse_deviation, running_mean, running_var)),
            *(momentum, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, weight, mean, inverse_deviation, positive)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        x, weight, mean, inverse_deviation, positive = ctx.saved_tensors
        gradient = ops.as_inner(gradient)
        channels, length = x.shape[1], x.numel() // x.shape[1]
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty(channels), torch.empty(channels)
        native().batch_norm_backward(  # type: ignore[union-attr]
            *(gradient.data_ptr(), _address(positive), x.data_ptr(), channels, length),
            *(_address(t) for t in (weight, mean, inverse_deviation, grad_x)),
            *(0, grad_weight.data_ptr(), grad_bias.data_ptr(), torch.get_num_threads()),
        )
        if weight is None:
            return grad_x, *[None] * 7
        return grad_x, grad_weight, grad_bias, *[None] * 5


class _ReLU(torch.autograd.Function):
    """ReLU that keeps one bit an entry for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        y = x if inplace else torch.empty_like(x)
        positive = _bits(1, x.numel())
        native().relu_forward(  # type: ignore[union-attr]
            x.data_ptr(), x.numel(), y.data_ptr(), positive.data_ptr(), torch.get_num_threads()
        )
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(positive)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        gradient = ops.as_inner(gradient)
        grad_x = torch.empty_like(gradient)
        native().relu_backward(  # type: ignore[union-attr]
            *(gradient.data_ptr(), positive.data_ptr(), gradient.numel(), grad_x.data_ptr()),
            torch.get_num_threads(),
        )
        return grad_x, None


class _MaxPool(torch.autograd.Function):
    """Maximum over square windows; keeps one byte an output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        n, c, h, w = x.shape
        p, q = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
        y = ops.empty_inner(n, c, p, q, like=x)
        winner = torch.empty(y.numel(), dtype=torch.uint8)
        native().max_pool_forward(  # type: ignore[union-attr]
            *(x.data_ptr(), c, h, w, n, kernel, stride, padding),
            *(y.data_ptr(), winner.data_ptr(), torch.get_num_threads()),
        )
        ctx.save_for_backward(winner)
        ctx.sizes = x.shape, kernel, stride, padding
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (winner,) = ctx.saved_tensors
        (n, c, h, w), kernel, stride, padding = ctx.sizes
        gradient = ops.as_inner(gradient)
        grad_x = ops.empty_inner(n, c, h, w, like=gradient)
        native().max_pool_backward(  # type: ignore[union-attr]
            *(gradient.data_ptr(), winner.data_ptr(), c, h, w, n, kernel, stride, padding),
            *(grad_x.data_ptr(), torch.get_num_threads()),
        )
        return grad_x, None, None, None


class NeighbourBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that takes batch-innermost inputs as they are; `rectifies` adds the ReLU behind it.

    A hook would see the ReLU's output in place of its own, so with a hook it leaves the ReLU alone.
    """

    rectifies: bool = False

    def forward(self, input: Tensor) -> Tensor:
        plain = not self.training or not self.track_running_stats or self.momentum is None
        if plain or not _takes(input, self.weight):
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self._check_input_dim(input)
        self.num_batches_tracked.add_(1)
        rectifies = self.rectifies and not self._forward_hooks
        output = _BatchNorm.apply(
            *(input, self.weight, self.bias, self.running_mean, self.running_var),
            *(self.eps, self.momentum, rectifies),
        )
        assert isinstance(output, Tensor)
        output.torchswat_rectified = rectifies  # type: ignore[attr-defined]
        return output


class NeighbourReLU(nn.ReLU):
    """A ReLU that keeps bits instead of its output, and lets pass what a batch norm has rectified."""

    def forward(self, input: Tensor) -> Tensor:
        if getattr(input, "torchswat_rectified", False):
            return input
        if not _takes(input):
            return super().forward(input)
        output = _ReLU.apply(input, self.inplace)
        assert isinstance(output, Tensor)
        return output


class NeighbourMaxPool2d(nn.MaxPool2d):
    """A MaxPool2d that takes batch-innermost inputs as they are."""

    def forward(self, input: Tensor) -> Any:
        sizes = self.kernel_size, self.stride, self.padding
        square = all(isinstance(size, int) or size[0] == size[1] for size in sizes)
        plain = self.dilation not in (1, (1, 1)) or self.return_indices
        if plain or not square or not _takes(input):
            return super().forward(input)
        kernel, stride, padding = (size if isinstance(size, int) else size[0] for size in sizes)
        if self.ceil_mode and any((size + 2 * padding - kernel) % stride for size in input.shape[2:]):
            return super().forward(input)  # a window reaches beyond the border
        output = _MaxPool.apply(input, kernel, stride, padding)
        assert isinstance(output, Tensor)
        return output


NEIGHBOUR_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: NeighbourBatchNorm2d,
    nn.ReLU: NeighbourReLU,
    nn.MaxPool2d: NeighbourMaxPool2d,
}
"""Which class of torch becomes which neighbour."""


def join_(model: nn.Module) -> None:
    """Switch the classes of `model`'s batch norms, ReLUs and pools to neighbours, in place."""
    followed = _only_read_by_relu(model)
    for module in model.modules():
        if type(module) in NEIGHBOUR_CLASSES:
            module.__class__ = NEIGHBOUR_CLASSES[type(module)]
            if isinstance(module, NeighbourBatchNorm2d):
                module.rectifies = module in followed


def separate_(model: nn.Module) -> None:
    """Undo `join_`."""
    dense_classes = {neighbour: dense for dense, neighbour in NEIGHBOUR_CLASSES.items()}
    for module in model.modules():
        if type(module) in dense_classes:
            module.__dict__.pop("rectifies", None)
            module.__class__ = dense_classes[type(module)]


class _Tracer(fx.Tracer):
    """Records how modules follow each other, without looking into those that have no children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _only_read_by_relu(model: nn.Module) -> set[nn.Module]:
    """Return the batch norms whose output goes to a ReLU module and nowhere else, at each of their uses.

    A model that cannot be traced (its flow depends on data) is read where it is made of `nn.Sequential`.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a user's forward may raise on symbolic values
        return _every_reader_is_relu(_pairs_in_sequentials(model))
    modules = dict(model.named_modules(remove_duplicate=False))

    def called(node: fx.Node) -> nn.Module | None:
        return modules.get(str(node.target)) if node.op == "call_module" else None

    return _every_reader_is_relu(
        (called(node), called(reader) if len(node.users) == 1 else None)
        for node in graph.nodes
        for reader in node.users or (node,)
    )


def _pairs_in_sequentials(model: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module | None]]:
    """Yield every child with what reads its output, where a plain `nn.Sequential` tells; None elsewhere."""
    for module in model.modules():
        children = [*module._modules.values(), None]
        if type(module).forward is not nn.Sequential.forward:
            yield from ((child, None) for child in children)
        else:
            yield from itertools.pairwise(children)


def _every_reader_is_relu(pairs: Iterable[tuple[nn.Module | None, nn.Module | None]]) -> set[nn.Module]:
    """Return the batch norms all of whose pairs are with a ReLU (a subclass may compute something else)."""
    verdicts: dict[nn.Module, bool] = {}
    for module, reader in pairs:
        if isinstance(module, nn.BatchNorm2d):
            verdicts[module] = verdicts.get(module, True) and type(reader) is nn.ReLU
    return {module for module, only in verdicts.items() if only}
