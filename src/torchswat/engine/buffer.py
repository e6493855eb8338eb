"""Memory for the compiled kernels to write to."""

from __future__ import annotations

import torch
from torch import Tensor


def buffer(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised tensor of the CPU, whatever torch's default dtype and device are.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     memory = buffer(2, 3)
    >>> memory.device.type, memory.dtype, memory.shape
    ('cpu', torch.float32, torch.Size([2, 3]))
    """
    return torch.empty(sizes, dtype=dtype, device="cpu")
