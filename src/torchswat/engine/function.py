"""A sparse layer's pass in eager mode as one node of autograd's graph.

Its gradients are deliberately not derivatives of its output: they are the straight-through estimate of the
paper, with the operands of each product selected as the row of `torchswat.algorithms` says.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchswat.engine import compiled_layer, layout, ops
from torchswat.engine.arguments import GRAD_WEIGHT_ACTIVATION, Arguments, moment_of
from torchswat.engine.batch_norm import RecomputeInfo
from torchswat.engine.loader import has_memory, is_plain
from torchswat.engine.once import differentiable_once
from torchswat.engine.saved import aligned
from torchswat.errors import InvalidValue


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


class Call(NamedTuple):
    """What a pass in eager mode is given beside input, weight and bias; nothing of it has a gradient."""

    state: Tensor
    weight_mask: Tensor | None
    activation_mask: Tensor | None
    recompute: RecomputeInfo | None
    a: Arguments
    native: ModuleType | None
    """The compiled kernels, where they do all of the pass."""


class SparseFunction(torch.autograd.Function):
    """The three products of a layer with their operands selected."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        y, kept, ctx.facts, record = run(x, weight, bias, call)
        a = call.a
        dense = None if a.slots & GRAD_WEIGHT_ACTIVATION or not a.save else x
        ctx.a, ctx.native, ctx.size = a, call.native, x.shape
        ctx.layout = layout.layout_of(x) if x.dim() == 4 else layout.NCHW
        if ctx.facts is not None:
            record = None  # the layer's state, which goes on
        ctx.save_for_backward(dense, weight, kept, record, call.weight_mask, *(call.recompute or ()))
        return y

    jvp = staticmethod(no_forward_mode)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept, record, weight_mask, *recompute = ctx.saved_tensors
        wanted, facts, a = ctx.needs_input_grad[:3], ctx.facts, ctx.a
        where: Any = (recompute or None, ctx.size, ctx.layout, a, wanted)
        if facts is not None and _is_of_kernels(gradient, weight, kept, x, facts):
            kept = aligned(kept)
            grads = compiled_layer.backward(ctx.native, gradient, x, weight, kept, facts, weight_mask, *where)
            return *grads, None
        if record is None:
            raise InvalidValue(
                "the backward pass of a sparse layer got a gradient, or saved tensors, of another dtype, device or "
                f"kind than its output ({gradient.dtype}, {gradient.device}, {type(gradient).__name__}); it ran on "
                "the compiled kernels, which take plain float32 tensors of the CPU."
            )
        operands = gradient, x, weight, kept, record, weight_mask
        geometry = ops.Geometry(a.stride, a.padding, a.dilation, a.groups, a.slots, a.chwn)
        if is_plain(*operands):
            where = (recompute or None, ctx.size, ctx.layout, geometry, wanted)
            grads = ops.run_backward(*operands, *where)
        else:
            found = torch.ops.torchswat.sparse_backward(*operands, ctx.size, ctx.layout, *geometry, wanted)
            grads = (grad if want else None for grad, want in zip(found, wanted, strict=True))
        return *grads, None


def _is_of_kernels(
    gradient: Tensor, weight: Tensor, kept: Tensor, x: Tensor | None, facts: compiled_layer.Facts
) -> bool:
    """Return whether the compiled kernels may read these, which hooks on saved tensors may have made anew."""
    dtype = torch.bfloat16 if facts.products & compiled_layer.NARROW else torch.float32
    return (
        not torch._C._len_torch_dispatch_stack()
        and gradient.dtype is dtype
        and has_memory(gradient)
        and has_memory(weight)
        and has_memory(kept)
        and (x is None or has_memory(x))
    )


def run(
    x: Tensor, weight: Tensor, bias: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, compiled_layer.Facts | None, Tensor]:
    """Run a pass without autograd, and let the layer's state be the next one.

    Returns the output, the saved activation, what the compiled kernels say of the pass where they ran it, and its
    record.
    """
    state, weight_mask, activation_mask, _, a, native = call
    if native is not None and not torch._C._len_torch_dispatch_stack():
        masks = weight_mask, activation_mask
        return compiled_layer.forward(
            native, x, weight, bias, state, *masks, None, a, moment_of(a.training), inplace=True
        )
    operands = x, weight, bias, state, weight_mask, activation_mask
    if is_plain(*operands):
        outputs = ops.run_forward(*operands, None, a)
    else:  # fake tensors, subclasses and dispatch modes find the operation by the dispatcher
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.torchswat.sparse_forward(*operands, None, *a)
    if a.training:
        state.copy_(outputs[2])
    y, kept, record = outputs
    return y, kept, None, record
