"""A sparse layer's pass in eager mode as one node of autograd's graph.

Its gradients are deliberately not derivatives of its output: they are the straight-through estimate of the
paper, with the operands of each product selected as the row of `torchswat.algorithms` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchswat.engine import layout, ops
from torchswat.engine.arguments import GRAD_WEIGHT_ACTIVATION, Arguments
from torchswat.engine.batch_norm import RecomputeInfo
from torchswat.engine.loader import is_plain
from torchswat.errors import InvalidValue

_TWICE = (
    b"a second derivative of a sparse layer was asked for; its gradient is a straight-through estimate, "
    b"which has none. "
    b"Call torchswat.desparsify_ first, or leave the layer out by skip=."
)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a second derivative an error, whatever the first one is of.

    torch's `once_differentiable` says nothing where the incoming gradient needs no gradient itself, though
    what was saved may: a gradient penalty then lacks a term.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        with torch.no_grad():
            grads = backward(ctx, *gradients)
        refuse = torch._C._functions.DelayedError(_TWICE, len(grads))
        return refuse(*[None if grad is None else grad.detach().requires_grad_() for grad in grads])

    return checked


def no_forward_mode(ctx: Any, *tangents: Any) -> Any:
    """Refuse forward-mode differentiation.

    Raises
    ------
    InvalidValue
        In every case.
    """
    raise InvalidValue(
        "a sparse layer was reached by forward-mode differentiation (torch.autograd.forward_ad); its "
        "gradient is a "
        "straight-through estimate that has no forward form. Call torchswat.desparsify_ first."
    )


class SparseFunction(torch.autograd.Function):
    """The three products of a layer with their operands selected."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        weight_mask: Tensor | None,
        activation_mask: Tensor | None,
        recompute: RecomputeInfo | None,
        a: Arguments,
        native: ModuleType | None,
    ) -> Tensor:
        y, kept, record = pass_forward(x, weight, bias, state, weight_mask, activation_mask, a, native)
        dense = None if a.slots & GRAD_WEIGHT_ACTIVATION or not a.save else x
        ctx.geometry = ops.Geometry(a.stride, a.padding, a.dilation, a.groups, a.slots, a.chwn)
        ctx.input = x.shape, layout.layout_of(x) if x.dim() == 4 else layout.NCHW
        ctx.save_for_backward(dense, weight, kept, record, weight_mask, *(recompute or ()))
        return y

    jvp = staticmethod(no_forward_mode)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept, record, weight_mask, *recompute = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        operands = gradient, x, weight, kept, record, weight_mask
        if is_plain(*operands):
            grads = ops.run_backward(*operands, recompute or None, *ctx.input, ctx.geometry, wanted)
        else:
            size, order = ctx.input
            found = torch.ops.torchswat.sparse_backward(*operands, size, order, *ctx.geometry, wanted)
            grads = (grad if want else None for grad, want in zip(found, wanted, strict=True))
        return *grads, *[None] * 6


def pass_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    weight_mask: Tensor | None,
    activation_mask: Tensor | None,
    a: Arguments,
    native: ModuleType | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a pass without autograd, and take over the layer's next state from its record."""
    operands = x, weight, bias, state, weight_mask, activation_mask
    if (native is not None and not torch._C._len_torch_dispatch_stack()) or is_plain(*operands):
        outputs = ops.run_forward(*operands, None, a, native)
    else:  # fake tensors, subclasses and dispatch modes find the operation by the dispatcher
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.torchswat.sparse_forward(*operands, None, *a)
    if a.training:
        state.copy_(outputs[2])
    return outputs
