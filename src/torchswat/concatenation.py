"""Concatenation along the channels that stays in the CHWN layout.

`torch.cat` knows two layouts, and returns NCHW for tensors in neither of them. In CHWN, channels are the
outermost dimension: the operands are copied one behind the other, and the gradient of an operand is a stretch
of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchswat.engine import ops
from torchswat.engine.batch_norm import runs_eagerly


def concatenate(tensors: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Return ``torch.cat(tensors, dim)``, in the CHWN layout where one of the operands is.

    Parameters
    ----------
    tensors : sequence of Tensor of shape (N, C, H, W)
        Of one N, H, W, dtype and device; others go to `torch.cat` as they are.
    dim : {1, -3}
        The channels.

    Returns
    -------
    Tensor of shape (N, sum of C, H, W)

    Examples
    --------
    >>> x = ops.to_chwn(torch.randn(4, 2, 3, 3))
    >>> ops.is_chwn(concatenate([x, torch.randn(4, 1, 3, 3)]))
    True
    """
    if not _stays(tensors):
        return torch.cat(list(tensors), dim)
    rows = [ops.as_chwn(tensor).permute(1, 2, 3, 0) for tensor in tensors]  # (C, H, W, N), as in memory
    return torch.cat(rows).permute(3, 0, 1, 2)


def _stays(tensors: Sequence[Tensor]) -> bool:
    if not runs_eagerly(*tensors) or any(t.dim() != 4 for t in tensors):
        return False
    same = len({(t.dtype, t.device, len(t), *t.shape[2:]) for t in tensors}) == 1
    return same and any(map(ops.is_chwn, tensors))
