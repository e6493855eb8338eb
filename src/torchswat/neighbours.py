"""What stands between sparse layers, in the layout that the engine works in.

Batch norm, ReLU and pooling are bound by memory, so they are worth their own kernels where a sparse layer
of the compiled engine hands them a batch-innermost tensor; any other input takes torch's own path. A batch
norm that is only read by a ReLU does both in one pass, and keeps one bit an entry for the backward pass
instead of the ReLU's output; one whose output is only added to a residual waits for it and does that too.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchswat.concatenation import as_part
from torchswat.dataflow import readers_of
from torchswat.engine import ops
from torchswat.engine.loader import native, native_for
from torchswat.models.resnet import PaddingShortcut

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
    """Training batch norm, with the sum with a residual and the ReLU behind it where those are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        relu: bool,
    ):
        channels, length = x.shape[1], x.numel() // x.shape[1]
        y, positive = torch.empty_like(x), _bits(channels, length) if relu else None
        mean, inverse_deviation = torch.empty(channels), torch.empty(channels)
        native().batch_norm_forward(  # type: ignore[union-attr]
            *(x.data_ptr(), channels, length, _address(weight), _address(bias), eps),
            *(_address(residual), relu, y.data_ptr()),
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
        grad_residual = None
        if ctx.needs_input_grad[1]:  # without a ReLU it is the gradient as it came
            grad_residual = gradient if positive is None else torch.empty_like(x)
        apart = grad_residual if positive is not None else None
        native().batch_norm_backward(  # type: ignore[union-attr]
            *(gradient.data_ptr(), _address(positive), x.data_ptr(), channels, length),
            *(_address(t) for t in (weight, mean, inverse_deviation, grad_x)),
            *(_address(apart), grad_weight.data_ptr(), grad_bias.data_ptr(), torch.get_num_threads()),
        )
        if weight is None:
            return grad_x, grad_residual, *[None] * 7
        return grad_x, grad_residual, grad_weight, grad_bias, *[None] * 5


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


class _AveragePool(torch.autograd.Function):
    """Means over windows that neither overlap nor are padded; keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        n, c, h, w = x.shape
        ctx.sizes = x.shape, kernel
        y = ops.empty_inner(n, c, h // kernel[0], w // kernel[1], like=x)
        native().average_forward(  # type: ignore[union-attr]
            x.data_ptr(), c, h, w, n, *kernel, y.data_ptr(), torch.get_num_threads()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (n, c, h, w), kernel = ctx.sizes
        gradient = ops.as_inner(gradient)
        grad_x = ops.empty_inner(n, c, h, w, like=gradient)
        native().average_backward(  # type: ignore[union-attr]
            gradient.data_ptr(), c, h, w, n, *kernel, grad_x.data_ptr(), torch.get_num_threads()
        )
        return grad_x, None


class _PaddingShortcut(torch.autograd.Function):
    """Every `stride`-th position, and channels of zeros behind; keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, new_channels: int) -> Tensor:
        n, c, h, w = x.shape
        ctx.sizes = x.shape, stride
        y = ops.empty_inner(n, c + new_channels, -(-h // stride), -(-w // stride), like=x)
        y[:, :c] = x[:, :, ::stride, ::stride]
        y[:, c:] = 0
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (n, c, h, w), stride = ctx.sizes
        grad_x = ops.empty_inner(n, c, h, w, like=gradient).zero_()
        grad_x[:, :, ::stride, ::stride] = gradient[:, :c]
        return grad_x, None, None


class _Awaiting:
    """A batch norm's output before it is computed: the addition that reads it brings the residual along."""

    def __init__(self, norm: NeighbourBatchNorm2d, input: Tensor) -> None:
        self.norm, self.input = norm, input

    def __add__(self, residual: Tensor) -> Tensor:
        return self.norm.normalise(self.input, residual)

    __radd__ = __iadd__ = __add__


@runtime_checkable
class Reader(Protocol):
    """A layer that may bring its input into the engine's layout."""

    def takes_inner(self, input: Tensor) -> bool:
        """Tell whether it would do so with this `input`."""
        ...


class NeighbourBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that takes batch-innermost inputs as they are, with what follows in the same pass.

    Other inputs it brings into that layout where a layer behind it would do so with its output.

    A hook would see something else than the batch norm's own output, so with a hook nothing is fused.

    Attributes
    ----------
    awaits : bool
        Its output is read by an addition alone, which then does the work.
    rectifies : bool
        It (or that sum) is read by a ReLU alone, which is done as well.
    behind : tuple of Reader
        The layers that read the result of all that.
    """

    awaits: bool = False
    rectifies: bool = False
    behind: tuple[Reader, ...] = ()

    def forward(self, input: Tensor) -> Any:
        plain = not self.training or not self.track_running_stats or self.momentum is None
        if not plain and self._converts(input):
            input = ops.as_inner(input)
        if plain or not _takes(input, self.weight):
            return super().forward(input)
        self._check_input_dim(input)
        if self.awaits and not self._forward_hooks:
            return _Awaiting(self, input)
        return self.normalise(input)

    def _converts(self, input: Tensor) -> bool:
        """Tell whether a layer behind it would bring its output into the engine's layout."""
        if torch.compiler.is_compiling() or input.dim() != 4:
            return False
        return any(reader.takes_inner(input) for reader in self.behind)

    def normalise(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised `input`, plus `residual`, rectified where a ReLU follows."""
        if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
            return self._apply_kernel(input, None, False) + residual
        rectifies = self.rectifies and not self._forward_hooks and (residual is not None) == self.awaits
        return self._apply_kernel(input, residual, rectifies)

    def _apply_kernel(self, input: Tensor, residual: Tensor | None, rectifies: bool) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        output = _BatchNorm.apply(
            *(input, None if residual is None else ops.as_inner(residual), self.weight, self.bias),
            *(self.running_mean, self.running_var, self.eps, self.momentum, rectifies),
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


def _averages(input: Tensor, kernel: tuple[int, int]) -> Tensor:
    output = _AveragePool.apply(input, kernel)
    assert isinstance(output, Tensor)
    return output


class NeighbourAvgPool2d(nn.AvgPool2d):
    """An AvgPool2d that takes batch-innermost inputs as they are."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride, padding = _pair(self.kernel_size), _pair(self.stride), _pair(self.padding)
        apart = stride == kernel and padding == (0, 0)
        plain = not apart or self.divisor_override is not None or not _takes(input)
        if plain or any(size < side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)
        if self.ceil_mode and any(size % side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)  # a window reaches beyond the border
        return _averages(input, kernel)


class NeighbourAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """An AdaptiveAvgPool2d that takes batch-innermost inputs as they are, to one value a channel."""

    def forward(self, input: Tensor) -> Tensor:
        if self.output_size not in (1, (1, 1), [1, 1]) or not _takes(input):
            return super().forward(input)
        return _averages(input, (input.shape[2], input.shape[3]))


class NeighbourPaddingShortcut(PaddingShortcut):
    """A PaddingShortcut that takes batch-innermost inputs as they are."""

    def forward(self, x: Tensor) -> Tensor:
        if not _takes(x):
            return super().forward(x)
        output = _PaddingShortcut.apply(x, self.stride, self.new_channels)
        assert isinstance(output, Tensor)
        return output


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


NEIGHBOUR_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: NeighbourBatchNorm2d,
    nn.ReLU: NeighbourReLU,
    nn.MaxPool2d: NeighbourMaxPool2d,
    nn.AvgPool2d: NeighbourAvgPool2d,
    nn.AdaptiveAvgPool2d: NeighbourAdaptiveAvgPool2d,
    PaddingShortcut: NeighbourPaddingShortcut,
}
"""Which class becomes which neighbour."""


def join_(model: nn.Module) -> None:
    """Switch the classes of `model`'s batch norms, ReLUs and pools to neighbours, in place."""
    readers = readers_of(model)
    for module in model.modules():
        if type(module) in NEIGHBOUR_CLASSES:
            module.__class__ = NEIGHBOUR_CLASSES[type(module)]
            if isinstance(module, NeighbourBatchNorm2d):
                module.awaits, module.rectifies = module in readers.summed, module in readers.rectified
                module.behind = tuple(r for r in readers.behind.get(module, ()) if isinstance(r, Reader))
    for module in readers.concatenated - {m for m in model.modules() if "_torchswat_part" in vars(m)}:
        module._torchswat_part = module.register_forward_hook(as_part)  # type: ignore[assignment]


def separate_(model: nn.Module) -> None:
    """Undo `join_`."""
    dense_classes = {neighbour: dense for dense, neighbour in NEIGHBOUR_CLASSES.items()}
    for module in model.modules():
        if "_torchswat_part" in module.__dict__:
            module.__dict__.pop("_torchswat_part").remove()
        if type(module) in dense_classes:
            for fused in ("awaits", "rectifies", "behind"):
                module.__dict__.pop(fused, None)
            module.__class__ = dense_classes[type(module)]
