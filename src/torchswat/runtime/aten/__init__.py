"""The operations of `torch.export` in those of a graph: one function for each family.

A function of the table takes the writer of the graph and the arguments of a call, in which tensors are `Made`
and sizes that are not fixed are `Size`, and returns the names of what it wrote. What is not in the table is
decomposed by torch; what torch cannot decompose is refused.
"""

from torchswat.runtime.aten import (  # noqa: F401 (each enters its functions into the table)
    creation,
    elementwise,
    movement,
    norms,
    products,
    reductions,
    windows,
)
from torchswat.runtime.aten.sizes import SIZES
from torchswat.runtime.aten.writer import DTYPES, TABLE, Made, Unsupported, Writer

__all__ = ["DTYPES", "SIZES", "TABLE", "Made", "Unsupported", "Writer"]
