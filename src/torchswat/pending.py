"""A batch norm's output that is computed when it is read, in one pass with what reads it.

Which batch norms are worth waiting for is read off the model once (`torchswat.dataflow`); whether it is true
of a pass is decided in that pass. A ReLU of ours that reads a `Pending` has it rectified as it is made, an
addition brings its other operand along, and whatever else reads it gets the plain output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from torchswat.batch_norm import normalised

_ADDITIONS = (Tensor.add, torch.add)
_SIZES: tuple[Callable, ...] = (
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")),
)
"""What can be asked of a tensor that is not there yet."""


class _Pass:
    """One pass of a batch norm: what it was given, and whether its statistics have been counted."""

    def __init__(self, norm: nn.BatchNorm2d, input: Tensor, norm_input: str, sums_rectified: bool) -> None:
        self.norm, self.input = norm, input
        self.norm_input, self.sums_rectified = norm_input, sums_rectified
        self.weight, self.bias = norm.weight, norm.bias
        self.statistics = norm.running_mean, norm.running_var, norm.num_batches_tracked
        self.momentum, self.eps = norm.momentum, norm.eps
        self.counted = False
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [t._version for t in (self.input, self.weight, self.bias) if t is not None]

    def output(self, residual: Tensor | None, relu: bool) -> Tensor:
        """Return the output, plus `residual`, rectified if `relu`."""
        if self._versions() != self.versions:
            raise RuntimeError(
                "the input or a parameter of a batch norm was changed in place before its output was read; "
                "autograd needs it as it was. Read the output before, or change a copy."
            )
        norm, counted = self.norm, self.counted
        self.counted = True
        mine = self.weight, self.bias, *self.statistics
        now = norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked
        if not counted and all(a is b for a, b in zip(now, mine, strict=True)):
            return normalised(norm, self.input, residual, relu, self.norm_input)
        # Read again in another way, or by now the module has other parameters (`torch.func.functional_call`).
        output = self.plain(self.input, self.weight, self.bias, () if counted else self.statistics)
        output = output if residual is None else output + residual
        return output.relu() if relu else output

    def plain(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: tuple = ()
    ) -> Tensor:
        """Return the output by torch's own operation; counted only where `statistics` are given."""
        mean, var, batches = statistics or (None, None, None)
        if batches is not None:
            batches.add_(1)
        momentum = self.momentum if statistics and self.momentum is not None else 0.0
        return F.batch_norm(input, mean, var, weight, bias, True, momentum, self.eps)


class _Promise(torch.autograd.Function):
    """Stands in autograd's graph for the batch norm, for who was given a `Pending` below Python."""

    @staticmethod
    def forward(
        ctx: Any, a_pass: _Pass, changes: list[bool], residual: Tensor | None, *operands: Tensor | None
    ) -> Tensor:
        # No tensors are saved: they are those of the pass, which this node and its Pending hold alone.
        ctx.a_pass, ctx.changes = a_pass, changes
        ctx.has_residual = residual is not None
        like = a_pass.input
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Pending, like.shape, dtype=like.dtype, device=like.device
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Do it again apart from the rest of the graph, parts of which may have been freed."""
        if ctx.changes:
            raise RuntimeError(
                "the output of a batch norm was changed in place, and an autograd function read it as well; "
                "its gradient cannot find its way. Change a copy of it."
            )
        a_pass: _Pass = ctx.a_pass
        operands = [
            None if t is None else t.detach().requires_grad_()
            for t in (a_pass.input, a_pass.weight, a_pass.bias)
        ]
        given = [t for t in operands if t is not None]
        with torch.enable_grad():
            output = a_pass.plain(*operands)  # type: ignore[arg-type]
        grads = iter(torch.autograd.grad(output, given, gradient))
        of_residual = gradient if ctx.has_residual else None
        return None, None, of_residual, *(None if t is None else next(grads) for t in operands)


class Pending(Tensor):
    """The output of a batch norm in training, or its sum with a residual, before anybody has read it.

    One that nobody ever reads is never computed, and leaves the running statistics as they are.
    """

    _pass: _Pass
    _residual: tuple[Tensor, int] | None
    _value: Tensor | None
    _made: tuple[Tensor, int] | None  # the value as it was made, and its version then
    _changes: list[bool]  # not empty where it was read after it was changed in place
    _sums: bool

    @staticmethod
    def of(norm: nn.BatchNorm2d, input: Tensor, norm_input: str, sums: bool, sums_rectified: bool) -> Pending:
        """Return what `norm` will make of `input`.

        Parameters
        ----------
        norm : BatchNorm2d
            In training, where gradients are wanted.
        input : Tensor
            (N, C, H, W).
        norm_input : str
            How its input is kept.
        sums : bool
            An addition is to be done in the same pass.
        sums_rectified : bool
            The sum waits for a ReLU.
        """
        return Pending._make(_Pass(norm, input, norm_input, sums_rectified), None, sums)

    @staticmethod
    def _make(a_pass: _Pass, residual: Tensor | None, sums: bool) -> Pending:
        changes: list[bool] = []
        pending = _Promise.apply(a_pass, changes, residual, a_pass.input, a_pass.weight, a_pass.bias)
        assert isinstance(pending, Pending)
        pending._pass, pending._changes, pending._sums = a_pass, changes, sums
        pending._value = pending._made = None
        pending._residual = None if residual is None else (residual, residual._version)
        return pending

    def settled(self) -> Tensor:
        """Return the plain tensor."""
        if self._value is None:
            self._value = self._output(False)
            self._made = self._value, self._value._version
        value = settled(self._value)  # which is pending itself where a residual was added in place
        if self._made is None or self._made[0] is not value or self._made[1] != value._version:
            self._changes.append(True)
        return value

    def rectified(self, inplace: bool) -> Tensor | None:
        """Return the tensor with a ReLU in the same pass, or None where that would be something else."""
        if self._value is not None or not torch.is_grad_enabled():
            return None
        output = self._output(True)
        if inplace:
            self._value = output
        return output

    def _output(self, relu: bool) -> Tensor:
        residual, version = self._residual or (None, 0)
        if residual is not None and residual._version != version:
            raise RuntimeError(
                "what was added to the output of a batch norm was changed in place before the sum was read. "
                "Change a copy of it."
            )
        with torch.inference_mode(False), torch.enable_grad():  # as it was where this was made
            return self._pass.output(residual, relu)

    def _plus(self, residual: Any, in_place: bool) -> Tensor | None:
        """Return the sum where the batch norm does it in the same pass, else None."""
        if not self._sums or self._value is not None or not torch.is_grad_enabled():
            return None
        if not isinstance(residual, Tensor) or isinstance(residual, Pending):
            return None
        like = self._pass.input
        if (residual.shape, residual.dtype, residual.device) != (like.shape, like.dtype, like.device):
            return None
        total = Pending._make(self._pass, residual, False) if self._pass.sums_rectified else None
        if in_place:  # this is the sum from now on, by whatever name it is known
            self._value = self._pass.output(residual, False) if total is None else total
            return self._value
        if total is not None:
            return total
        return self._pass.output(residual, False)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIZES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if len(args) == 2 and not kwargs:
            found = None
            if func in _ADDITIONS:
                one, other = args if isinstance(args[0], Pending) and args[0]._sums else args[::-1]
                found = one._plus(other, in_place=False) if isinstance(one, Pending) else None
            elif func is Tensor.add_ and isinstance(args[0], Pending):
                found = args[0]._plus(args[1], in_place=True)
            if found is not None:
                return found
        plain: Any = tree_map_only(Pending, Pending.settled, (args, kwargs))
        return func(*plain[0], **plain[1])

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Serve who reads a tensor below Python: gradients find their way by `_Promise`."""
        with torch.overrides.enable_reentrant_dispatch():
            plain: Any = tree_map_only(Pending, lambda p: p.settled().detach(), (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def settled(tensor: Tensor) -> Tensor:
    """Return `tensor`, as a plain one where it is pending."""
    return tensor.settled() if type(tensor) is Pending else tensor
