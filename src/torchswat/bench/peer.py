"""The public peer: `sparseprop` (Nikdan et al. 2023, arXiv:2302.04852), where somebody installed it.

Its layers hold weights that are sparse once and for all, and it compiles for the machine on which pip
installs it. Its forward product compares with ours (its weights are packed beforehand and for free); its
backward pass does another thing, the gradient of the kept weights alone, so it is not in the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

from torch import Tensor

from torchswat.engine.shape import Shape


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("sparseprop.modules"), ""
    except Exception as error:  # a foreign extension may fail in any way
        return None, f"{type(error).__name__}: {error}"


def absent() -> str | None:
    """Return why sparseprop is not measured, or None where it is."""
    module, reason = _load()
    return None if module else f"no sparseprop: {reason} (pip install sparseprop; needs a C++ compiler)"


def contestants(shape: Shape, x: Tensor, weight: Tensor, sparsity: float) -> dict[str, Callable[[], object]]:
    """Return both of its forward products on `x` (N, C, H, W) and a `weight` with zeros; {} where absent."""
    module, _ = _load()
    if module is None:
        return {}
    settings = {"padding": shape.padding[0], "stride": shape.stride[0]}
    return {
        f"sparseprop {sparsity} over {inner}": partial(
            module.SparseConv2d(weight, **settings, vectorizing_over_on=over_width), x
        )
        for inner, over_width in (("batch", False), ("width", True))
    }
