"""Batch norms, ReLUs and pools that take tensors in the CHWN layout, and save little for backward.

A sparse layer of the compiled engine returns such a tensor. Batch norm, ReLU and pooling are bound by memory,
so they have kernels of their own for it; any other input takes torch's own operations. A ReLU saves one bit
an entry instead of its output, a maximum the position it was found at. Every output is a plain tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchswat.batch_norm import fuses, normalised
from torchswat.engine import kept, norm_ops, ops
from torchswat.engine.batch_norm import runs_eagerly, takes
from torchswat.engine.buffer import buffer
from torchswat.engine.loader import kernel_for, native
from torchswat.engine.once import differentiable_once
from torchswat.models.resnet import PaddingShortcut


class _ReLU(torch.autograd.Function):
    """ReLU that saves one bit an entry for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        y, positive = kept.rectify(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.strides = kept.dense_strides(y)
        ctx.save_for_backward(positive)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return kept.rectified_gradient(gradient, positive, ctx.strides), None


class _MaxPool(torch.autograd.Function):
    """Maximum over square windows; saves one byte an output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        n, c, h, w = x.shape
        p, q = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
        y = ops.empty_chwn(n, c, p, q, like=x)
        winner = buffer(y.numel(), dtype=torch.uint8)
        kernel_for(native(), "max_pool_forward", x)(  # type: ignore[union-attr]
            *(x.data_ptr(), c, h, w, n, kernel, stride, padding),
            *(y.data_ptr(), winner.data_ptr(), torch.get_num_threads()),
        )
        ctx.save_for_backward(winner)
        ctx.sizes = x.shape, kernel, stride, padding
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (winner,) = ctx.saved_tensors
        (n, c, h, w), kernel, stride, padding = ctx.sizes
        gradient = ops.as_chwn(gradient)
        grad_x = ops.empty_chwn(n, c, h, w, like=gradient)
        kernel_for(native(), "max_pool_backward", gradient)(  # type: ignore[union-attr]
            *(gradient.data_ptr(), winner.data_ptr(), c, h, w, n, kernel, stride, padding),
            *(grad_x.data_ptr(), torch.get_num_threads()),
        )
        return grad_x, None, None, None


class _AveragePool(torch.autograd.Function):
    """Means over windows that neither overlap nor are padded; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        n, c, h, w = x.shape
        ctx.sizes = x.shape, kernel
        y = ops.empty_chwn(n, c, h // kernel[0], w // kernel[1], like=x)
        kernel_for(native(), "average_forward", x)(  # type: ignore[union-attr]
            x.data_ptr(), c, h, w, n, *kernel, y.data_ptr(), torch.get_num_threads()
        )
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (n, c, h, w), kernel = ctx.sizes
        gradient = ops.as_chwn(gradient)
        grad_x = ops.empty_chwn(n, c, h, w, like=gradient)
        kernel_for(native(), "average_backward", gradient)(  # type: ignore[union-attr]
            gradient.data_ptr(), c, h, w, n, *kernel, grad_x.data_ptr(), torch.get_num_threads()
        )
        return grad_x, None


class _PaddingShortcut(torch.autograd.Function):
    """Every `stride`-th position, and channels of zeros behind; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, new_channels: int) -> Tensor:
        n, c, h, w = x.shape
        ctx.sizes = x.shape, stride
        y = ops.empty_chwn(n, c + new_channels, -(-h // stride), -(-w // stride), like=x)
        y[:, :c] = x[:, :, ::stride, ::stride]
        y[:, c:] = 0
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (n, c, h, w), stride = ctx.sizes
        grad_x = ops.empty_chwn(n, c, h, w, like=gradient).zero_()
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
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (winner,) = ctx.saved_tensors
        # torch asks for the input, of which it reads the sizes alone
        x = torch.empty_strided(*ctx.input, dtype=gradient.dtype, device=gradient.device)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(gradient, x, *ctx.geometry, winner.long()), None


_FEW_ENTRIES = 2**16
"""Of a ReLU's output: below, a node of autograd in Python costs more than the bytes that it saves are worth."""

_LARGEST_WINDOW = 16
"""Rows of a maximum's window that the compiled kernel knows: where the largest was found is one byte."""


def _differentiates(input: Tensor) -> bool:
    """Return whether a backward pass is to come, in eager torch."""
    return torch.is_grad_enabled() and input.requires_grad and runs_eagerly(input)


class ChwnBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that takes CHWN inputs as they are.

    Attributes
    ----------
    norm_input : str
        How it saves its input for backward (`torchswat.engine.batch_norm.NORM_INPUTS`).
    """

    norm_input: str = "whole"

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            output = norm_ops.traced(self, input)
            return super().forward(input) if output is None else output
        if not fuses(self, input):
            if _is_narrow_chwn(self, input):
                return _rounded(self, input)
            return self._by_running_statistics(input) if self._evaluates(input) else super().forward(input)
        return normalised(self, input, None, False, self.norm_input)

    def _evaluates(self, input: Tensor) -> bool:
        """Return whether this is an evaluation of a CHWN input, whose layout torch would not return."""
        tracked = not self.training and self.running_mean is not None and self.running_var is not None
        return tracked and input.dim() == 4 and input.numel() > 0 and takes(input)

    def _by_running_statistics(self, input: Tensor) -> Tensor:
        """Return the output as torch computes it on the matrix (C, H * W * N) that a CHWN input is in memory."""
        self._check_input_dim(input)
        turned = input.permute(1, 2, 3, 0)
        rows = turned.reshape(1, input.shape[1], -1)  # a view
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        output = nn.functional.batch_norm(rows, *statistics, training=False, momentum=0.0, eps=self.eps)
        return output.view(turned.shape).permute(3, 0, 1, 2)


def _is_narrow_chwn(norm: nn.BatchNorm2d, input: Tensor) -> bool:
    """Return whether `input` is what a sparse layer returns under autocast: CHWN, rounded to 16 bits."""
    narrow = input.dtype in (torch.bfloat16, torch.float16)
    return narrow and norm.training and input.dim() == 4 and ops.is_chwn(input) and input.is_cpu


def _rounded(norm: ChwnBatchNorm2d, input: Tensor) -> Tensor:
    """Return ``norm(input)`` computed in float32, in which the compiled kernels are faster than torch in 16 bits."""
    with torch.autocast("cpu", enabled=False):
        wide = input.float()
        if not fuses(norm, wide):
            return nn.BatchNorm2d.forward(norm, wide).to(input.dtype)
        return normalised(norm, wide, None, False, norm.norm_input).to(input.dtype)


class ChwnReLU(nn.ReLU):
    """A ReLU that saves one bit an entry for backward instead of its output, where that is no small one."""

    def forward(self, input: Tensor) -> Tensor:
        half = input.dtype is torch.float16 and input.is_cpu
        if half or input.numel() < _FEW_ENTRIES:
            return super().forward(input)
        in_torch = _differentiates(input) and not (self.inplace and input._is_view())
        if not in_torch and not takes(input):
            return super().forward(input)
        output = _ReLU.apply(input, self.inplace)
        assert isinstance(output, Tensor)
        return output


class ChwnMaxPool2d(nn.MaxPool2d):
    """A MaxPool2d that takes CHWN inputs as they are, and saves no input."""

    def forward(self, input: Tensor) -> Any:
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
        """Return whether the compiled kernel does it: square windows, none of them beyond the border."""
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


class ChwnAvgPool2d(nn.AvgPool2d):
    """An AvgPool2d that takes CHWN inputs as they are."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride, padding = _pair(self.kernel_size), _pair(self.stride), _pair(self.padding)
        apart = stride == kernel and padding == (0, 0)
        plain = not apart or self.divisor_override is not None or not takes(input)
        if plain or any(size < side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)
        if self.ceil_mode and any(size % side for size, side in zip(input.shape[2:], kernel, strict=True)):
            return super().forward(input)  # a window reaches beyond the border
        return _averages(input, kernel)


class ChwnAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """An AdaptiveAvgPool2d that takes CHWN inputs as they are, to one value a channel."""

    def forward(self, input: Tensor) -> Tensor:
        if self.output_size not in (1, (1, 1), [1, 1]) or not takes(input):
            return super().forward(input)
        return _averages(input, (input.shape[2], input.shape[3]))


class ChwnPaddingShortcut(PaddingShortcut):
    """A PaddingShortcut that takes CHWN inputs as they are."""

    def forward(self, x: Tensor) -> Tensor:
        if not takes(x):
            return super().forward(x)
        output = _PaddingShortcut.apply(x, self.stride, self.new_channels)
        assert isinstance(output, Tensor)
        return output


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


SWITCHED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: ChwnBatchNorm2d,
    nn.ReLU: ChwnReLU,
    nn.MaxPool2d: ChwnMaxPool2d,
    nn.AvgPool2d: ChwnAvgPool2d,
    nn.AdaptiveAvgPool2d: ChwnAdaptiveAvgPool2d,
    PaddingShortcut: ChwnPaddingShortcut,
}
"""Which class is switched to which."""


def switch_(model: nn.Module, norm_input: str = "whole") -> None:
    """Switch the classes of `model`'s batch norms, ReLUs and pools in place."""
    for module in model.modules():
        if type(module) in SWITCHED_CLASSES:
            module.__class__ = SWITCHED_CLASSES[type(module)]
            if isinstance(module, ChwnBatchNorm2d):
                module.norm_input = norm_input


def restore_(model: nn.Module) -> None:
    """Undo `switch_`."""
    dense_classes = {switched: dense for dense, switched in SWITCHED_CLASSES.items()}
    for module in model.modules():
        if type(module) in dense_classes:
            module.__dict__.pop("norm_input", None)
            module.__class__ = dense_classes[type(module)]
