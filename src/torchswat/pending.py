"""A batch norm's output that is computed when it is read, in one pass with what reads it.

Which batch norms are worth waiting for is read off the model once (`torchswat.dataflow`); whether it is true
of a pass is decided in that pass. A ReLU of ours that reads a `Pending` has it rectified as it is made, an
addition brings its other operand along, and whatever else reads it gets the plain output.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from torchswat.batch_norm import normalised

_ADDITIONS = (Tensor.add, torch.add)
_SIZES: tuple[Callable, ...] = (
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")),
)
"""What can be asked of a tensor that is not there yet."""


@dataclass
class _Pass:
    """One pass of a batch norm: what it was given, and whether its statistics have been counted."""

    norm: nn.BatchNorm2d
    input: Tensor
    norm_input: str
    sums_rectified: bool
    version: int
    counted: bool = False

    def output(self, residual: Tensor | None, relu: bool) -> Tensor:
        """Return the output, plus `residual`, rectified if `relu`."""
        if self.input._version != self.version:
            raise RuntimeError(
                "the input of a batch norm was changed in place before its output was read; autograd needs "
                "it as it was. Change a copy of it."
            )
        norm = self.norm
        if not self.counted:
            self.counted = True
            return normalised(norm, self.input, residual, relu, self.norm_input)
        # Somebody reads the output again in another way: statistics have been counted.
        output = F.batch_norm(self.input, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        output = output if residual is None else output + residual
        return output.relu() if relu else output


class Pending(Tensor):
    """The output of a batch norm in training, or its sum with a residual, before anybody has read it.

    One that nobody ever reads is never computed, and leaves the running statistics as they are.
    """

    _pass: _Pass
    _residual: tuple[Tensor, int] | None
    _value: Tensor | None

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
        a_pass = _Pass(norm, input, norm_input, sums_rectified, input._version)
        return Pending._make(a_pass, None, sums)

    @staticmethod
    def _make(a_pass: _Pass, residual: Tensor | None, sums: bool) -> Pending:
        like = a_pass.input
        pending = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Pending, like.shape, dtype=like.dtype, device=like.device, requires_grad=True
        )
        pending._pass, pending._value, pending._sums = a_pass, None, sums
        pending._residual = None if residual is None else (residual, residual._version)
        _lead_gradients(pending)
        return pending

    def settled(self) -> Tensor:
        """Return the plain tensor."""
        if self._value is None:
            self._value = self._output(False)
        return self._value

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
        with torch.enable_grad():  # as it was where this was made
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
        if in_place:
            self._residual, self._sums = (residual, residual._version), False
            if not self._pass.sums_rectified:
                self.settled()
            return self
        if self._pass.sums_rectified:
            return Pending._make(self._pass, residual, False)
        with torch.enable_grad():
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
        """Serve who reads a tensor below Python: gradients find their way by `_lead_gradients`."""
        with torch.overrides.enable_reentrant_dispatch():
            plain: Any = tree_map_only(Pending, lambda p: p.settled().detach(), (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def _lead_gradients(pending: Pending) -> None:
    """Lead on a gradient that reaches `pending` itself: an autograd function may have been given it."""
    myself = weakref.ref(pending)  # a hook that held the tensor would be held by it

    def lead(gradient: Tensor) -> None:
        reached = myself()
        if reached is not None:
            torch.autograd.backward(reached.settled(), gradient)

    with torch._C.DisableTorchFunctionSubclass():
        pending.register_hook(lead)


def settled(tensor: Tensor) -> Tensor:
    """Return `tensor`, as a plain one where it is pending."""
    return tensor.settled() if type(tensor) is Pending else tensor
