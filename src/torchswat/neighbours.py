"""What stands between sparse layers, with little kept for the backward pass.

Batch norm, ReLU and pooling are bound by memory, so they are worth their own kernels where a sparse layer
of the compiled engine hands them a batch-innermost tensor; any other input takes torch's own path. A batch
norm that is read by a ReLU alone waits for it (`torchswat.pending`), does both in one pass, and keeps one bit
an entry for the backward pass instead of the ReLU's output; one whose output is only added to a residual
waits for that and does it too.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._C import _autograd as autograd  # type: ignore[attr-defined]
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks

from torchswat.batch_norm import fuses, normalised
from torchswat.concatenation import as_part
from torchswat.dataflow import readers_of
from torchswat.engine import kept, ops
from torchswat.engine.batch_norm import takes
from torchswat.engine.buffer import buffer
from torchswat.engine.loader import native
from torchswat.models.resnet import PaddingShortcut
from torchswat.pending import Pending, settled


class _ReLU(torch.autograd.Function):
    """ReLU that keeps one bit an entry for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        y, positive = kept.rectify(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.strides = kept.dense_strides(y)
        ctx.save_for_backward(positive)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return kept.rectified_gradient(gradient, positive, ctx.strides), None


class _MaxPool(torch.autograd.Function):
    """Maximum over square windows; keeps one byte an output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        n, c, h, w = x.shape
        p, q = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
        y = ops.empty_inner(n, c, p, q, like=x)
        winner = buffer(y.numel(), dtype=torch.uint8)
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


class _MaxPoolInTorch(torch.autograd.Function):
    """Maximum over windows by torch's operations; keeps a position an output, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: tuple) -> Tensor:
        y, winner = torch.ops.aten.max_pool2d_with_indices(x, *geometry)
        area = x.shape[-2] * x.shape[-1]
        narrow = torch.int16 if area <= 2**15 else torch.int32 if area <= 2**31 else torch.int64
        ctx.input, ctx.geometry = (x.shape, x.stride()), geometry
        ctx.save_for_backward(winner.to(narrow))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (winner,) = ctx.saved_tensors
        # torch asks for the input, of which it reads the sizes alone
        x = torch.empty_strided(*ctx.input, dtype=gradient.dtype, device=gradient.device)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(gradient, x, *ctx.geometry, winner.long()), None


_LARGEST_WINDOW = 16
"""Rows of a maximum's window that the compiled kernel knows: where the largest was found is one byte."""


def _differentiates(input: Tensor) -> bool:
    """Tell whether a backward pass is to come, in eager torch."""
    return torch.is_grad_enabled() and input.requires_grad and not torch.compiler.is_compiling()


@runtime_checkable
class Reader(Protocol):
    """A layer that may bring its input into the engine's layout."""

    def takes_inner(self, input: Tensor) -> bool:
        """Tell whether it would do so with this `input`."""
        ...


class NeighbourBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that takes batch-innermost inputs as they are, with what follows in the same pass.

    Other inputs it brings into that layout where a layer behind it would do so with its output.

    Where it waits for what reads it, its output is a `Pending`. With hooks on it, it does not wait: they may
    keep what they see. Nor does it under gradient checkpointing, whose parts may end between it and its
    reader.

    Attributes
    ----------
    awaits : bool
        Its output is read by an addition alone, which is done in the same pass.
    rectifies : bool
        It (or that sum) is read by a ReLU alone, which is done as well.
    behind : tuple of Reader
        The layers that read the result of all that.
    norm_input : str
        How its input is kept (`torchswat.engine.batch_norm.NORM_INPUTS`).
    """

    awaits: bool = False
    rectifies: bool = False
    behind: tuple[Reader, ...] = ()
    norm_input: str = "whole"

    def forward(self, input: Tensor) -> Tensor:
        input = settled(input)
        if not fuses(self, input):
            return super().forward(input)
        if self._converts(input):
            input = ops.as_inner(input)
        if (self.awaits or self.rectifies) and self._may_wait(input):
            return Pending.of(self, input, self.norm_input, self.awaits, self.rectifies)
        return normalised(self, input, None, False, self.norm_input)

    def _converts(self, input: Tensor) -> bool:
        """Tell whether a layer behind it would bring its output into the engine's layout."""
        if torch.compiler.is_compiling() or input.dim() != 4:
            return False
        return any(reader.takes_inner(input) for reader in self.behind)

    def _may_wait(self, input: Tensor) -> bool:
        """Tell whether gradients are wanted, and nobody but who reads the output will look at it."""
        tensors = input, self.weight, self.bias
        differentiates = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return differentiates and not _is_hooked(self) and not _is_checkpointed()


def _is_checkpointed() -> bool:
    """Tell whether this is a part of a model that gradient checkpointing (not reentrant) computes twice."""
    # Before torch 2.8 nobody can tell; there a part that ends between the two raises torch's CheckpointError.
    on_top = getattr(autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None)(False)
    return on_top is not None and on_top[0].__module__ == "torch.utils.checkpoint"


def _is_hooked(module: nn.Module) -> bool:
    """Tell whether hooks see the output of `module`: its own, or backward hooks on all modules.

    Forward hooks on all modules are those of profilers, which read names and not numbers.
    """
    own = module._forward_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(own) or bool(hooks._global_backward_hooks or hooks._global_backward_pre_hooks)


class NeighbourReLU(nn.ReLU):
    """A ReLU that keeps bits instead of its output, and leaves its work to a batch norm that waits for it."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Pending:
            rectified = input.rectified(self.inplace)
            if rectified is not None:
                return rectified
        input = settled(input)
        in_torch = _differentiates(input) and not (self.inplace and input._is_view())
        if not in_torch and not takes(input):
            return super().forward(input)
        output = _ReLU.apply(input, self.inplace)
        assert isinstance(output, Tensor)
        return output


class NeighbourMaxPool2d(nn.MaxPool2d):
    """A MaxPool2d that takes batch-innermost inputs as they are, and keeps no input."""

    def forward(self, input: Tensor) -> Any:
        input = settled(input)
        if self._in_engine(input):
            kernel, stride, padding = (_pair(size) for size in (self.kernel_size, self.stride, self.padding))
            output = _MaxPool.apply(input, kernel[0], stride[0], padding[0])
        elif self.return_indices or not _differentiates(input):
            return super().forward(input)
        else:
            sizes = self.kernel_size, self.stride, self.padding, self.dilation
            output = _MaxPoolInTorch.apply(input, (*map(_pair, sizes), self.ceil_mode))
        assert isinstance(output, Tensor)
        return output

    def _in_engine(self, input: Tensor) -> bool:
        """Tell whether the compiled kernel does it: square windows, none of them beyond the border."""
        sizes = [_pair(size) for size in (self.kernel_size, self.stride, self.padding)]
        plain = self.return_indices or _pair(self.dilation) != (1, 1)
        if plain or any(a != b for a, b in sizes) or not takes(input):
            return False
        kernel, stride, padding = (size[0] for size in sizes)
        if kernel > _LARGEST_WINDOW:
            return False
        return not self.ceil_mode or not any((s + 2 * padding - kernel) % stride for s in input.shape[2:])


def _averages(input: Tensor, kernel: tuple[int, int]) -> Tensor:
    output = _AveragePool.apply(input, kernel)
    assert isinstance(output, Tensor)
    return output


class NeighbourAvgPool2d(nn.AvgPool2d):
    """An AvgPool2d that takes batch-innermost inputs as they are."""

    def forward(self, input: Tensor) -> Tensor:
        input = settled(input)
        kernel, stride, padding = _pair(self.kernel_size), _pair(self.stride), _pair(self.padding)
        apart = stride == kernel and padding == (0, 0)
        plain = not apart or self.divisor_override is not None or not takes(input)
        if plain or any(size < side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)
        if self.ceil_mode and any(size % side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)  # a window reaches beyond the border
        return _averages(input, kernel)


class NeighbourAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """An AdaptiveAvgPool2d that takes batch-innermost inputs as they are, to one value a channel."""

    def forward(self, input: Tensor) -> Tensor:
        input = settled(input)
        if self.output_size not in (1, (1, 1), [1, 1]) or not takes(input):
            return super().forward(input)
        return _averages(input, (input.shape[2], input.shape[3]))


class NeighbourPaddingShortcut(PaddingShortcut):
    """A PaddingShortcut that takes batch-innermost inputs as they are."""

    def forward(self, x: Tensor) -> Tensor:
        x = settled(x)
        if not takes(x):
            return super().forward(x)
        output = _PaddingShortcut.apply(x, self.stride, self.new_channels)
        assert isinstance(output, Tensor)
        return output


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


NEIGHBOUR_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: NeighbourBatchNorm2d,
    nn.ReLU: NeighbourReLU,
    nn.MaxPool2d: NeighbourMaxPool2d,
    nn.AvgPool2d: NeighbourAvgPool2d,
    nn.AdaptiveAvgPool2d: NeighbourAdaptiveAvgPool2d,
    PaddingShortcut: NeighbourPaddingShortcut,
}
"""Which class becomes which neighbour."""


def join_(model: nn.Module, norm_input: str = "whole") -> None:
    """Switch the classes of `model`'s batch norms, ReLUs and pools to neighbours, in place."""
    readers = readers_of(model)
    for module in model.modules():
        if type(module) in NEIGHBOUR_CLASSES:
            module.__class__ = NEIGHBOUR_CLASSES[type(module)]
            if isinstance(module, NeighbourBatchNorm2d):
                module.awaits, module.rectifies = module in readers.summed, module in readers.rectified
                module.norm_input = norm_input
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
            for fused in ("awaits", "rectifies", "behind", "norm_input"):
                module.__dict__.pop(fused, None)
            module.__class__ = dense_classes[type(module)]
