"""Concatenation along the channels that stays batch-innermost.

`torch.cat` knows two layouts, and lays whatever is in neither of them out anew as NCHW. Batch-innermost,
channels are what lies outermost: the parts are copied one behind the other, and the gradient of a part is a
stretch of the gradient. A module whose output is read by a concatenation hands it out as a `Part`, a tensor
that does nothing but this differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchswat.dataflow import CONCATENATIONS
from torchswat.engine import ops


class Part(Tensor):
    """A batch-innermost tensor; whatever is computed from it is an ordinary one."""

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in CONCATENATIONS and (parts := _along_channels(*args, **(kwargs or {}))):
                return concatenate(parts)
            return func(*args, **(kwargs or {}))


def _along_channels(
    tensors: Any, dim: int = 0, *, axis: int | None = None, out: Tensor | None = None
) -> list[Tensor]:
    """Return what these arguments concatenate, if it is the channels of pictures of one size and dtype."""
    tensors, dim = list(tensors), dim if axis is None else axis
    same = len({(t.dtype, t.device, t.dim(), len(t), *t.shape[2:]) for t in tensors}) == 1
    return tensors if same and tensors[0].dim() == 4 and dim in (1, -3) and out is None else []


def concatenate(parts: list[Tensor]) -> Tensor:
    """Return the batch-innermost concatenation of `parts`, (N, C, H, W) each, along the channels."""
    rows = [ops.as_inner(part).permute(1, 2, 3, 0) for part in parts]  # (C, H, W, N) each, as in memory
    return torch.cat(rows).permute(3, 0, 1, 2)


def as_part(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
    """Turn a batch-innermost output into a `Part`; to be registered as a forward hook."""
    if torch.compiler.is_compiling() or type(output) is not Tensor or not ops.is_inner(output):
        return None
    return output.as_subclass(Part)
