"""Sparse Weight Activation Training (SWAT) for PyTorch.

>>> import torch, torchswat
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10))
>>> model = torchswat.sparsify_(model, algorithm="swat", sparsity=0.8)
>>> model(torch.randn(4, 3, 8, 8)).sum().backward()  # ... and train as ever
>>> model = torchswat.desparsify_(torchswat.prune_(model))  # a pruned, plain torch model
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchswat import algorithms, errors, models, schedules
    from torchswat.accounting import cost
    from torchswat.analysis import angle
    from torchswat.batch_norm import BatchNormReLU2d
    from torchswat.convert import (
        Sparsity,
        count_steps_,
        desparsify_,
        load_sparse_state_,
        prune_,
        sparse_layers,
        sparse_state,
        sparsify_,
    )
    from torchswat.engine.allocator import tune_allocator
    from torchswat.fuse import fuse_, unfuse_
    from torchswat.runtime.network import load
    from torchswat.runtime.quantize import quantize
    from torchswat.runtime.saving import save
    from torchswat.selection import select
    from torchswat.summaries import summary
    from torchswat.tuning import tune

__all__ = [
    "BatchNormReLU2d",
    "Sparsity",
    "algorithms",
    "angle",
    "cost",
    "count_steps_",
    "desparsify_",
    "errors",
    "fuse_",
    "load",
    "load_sparse_state_",
    "models",
    "prune_",
    "quantize",
    "save",
    "schedules",
    "select",
    "sparse_layers",
    "sparse_state",
    "sparsify_",
    "summary",
    "tune",
    "tune_allocator",
    "unfuse_",
]
__version__ = "0.1.0.dev0"

_MODULES = ("algorithms", "errors", "models", "schedules")
# Imported when they are first used, so that the command line can answer before torch is there.
_HOMES = {
    "BatchNormReLU2d": "torchswat.batch_norm",
    "Sparsity": "torchswat.convert",
    "angle": "torchswat.analysis",
    "cost": "torchswat.accounting",
    "count_steps_": "torchswat.convert",
    "desparsify_": "torchswat.convert",
    "fuse_": "torchswat.fuse",
    "load": "torchswat.runtime.network",
    "load_sparse_state_": "torchswat.convert",
    "prune_": "torchswat.convert",
    "quantize": "torchswat.runtime.quantize",
    "save": "torchswat.runtime.saving",
    "select": "torchswat.selection",
    "sparse_layers": "torchswat.convert",
    "sparse_state": "torchswat.convert",
    "sparsify_": "torchswat.convert",
    "summary": "torchswat.summaries",
    "tune": "torchswat.tuning",
    "tune_allocator": "torchswat.engine.allocator",
    "unfuse_": "torchswat.fuse",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"torchswat.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'torchswat' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
