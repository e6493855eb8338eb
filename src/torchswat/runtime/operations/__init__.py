"""The operations of networks, by name: one table, made of a file for each family."""

from __future__ import annotations

from torchswat.runtime.operations import (
    elementwise,
    movement,
    norms,
    products,
    quantized,
    reductions,
    sampling,
    windows,
)
from torchswat.runtime.operations.rows import Operation

_FAMILIES = elementwise, reductions, movement, windows, norms, products, sampling, quantized

OPERATIONS: dict[str, Operation] = {
    name: row for family in _FAMILIES for name, row in family.OPERATIONS.items()
}
"""Named and meant as ONNX's are, where ONNX has them."""
