"""Backward passes that cannot be differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_TWICE = (
    b"a second derivative of a sparse layer, or of a batch norm, ReLU or pool that sparsify_ has switched, was "
    b"asked for; it has none. Call torchswat.desparsify_ first."
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
        refuse = torch._C._functions.DelayedError(_TWICE, len(grads))  # type: ignore[attr-defined]
        return refuse(*[None if grad is None else grad.detach().requires_grad_() for grad in grads])

    return checked
