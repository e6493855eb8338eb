"""Where the time of a step goes, by kind of work, from the profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from torchswat.convert import sparse_layers
from torchswat.engine import kept, ops

_SELECTION = "torchswat::selection"
_PACKING = "torchswat::packed_weights"
_COMPRESSING = "torchswat::compressed"
_REPEATS = 3

KINDS: dict[str, tuple[str, ...]] = {
    "products": (
        "torchswat::conv2d_packed",
        "torchswat::conv2d_compressed_grad_weight",
        "aten::convolution",
        "aten::conv2d",
        "aten::linear",
        "aten::mm",
        "aten::addmm",
        "aten::matmul",
    ),
    "packing": (_PACKING,),
    "compressing": (_COMPRESSING, "torchswat::compress"),
    "selection": (_SELECTION,),
    "layout": ("torchswat::to_inner", "torchswat::to_channels_last", "torchswat::to_nchw"),
    "batch norm": ("BatchNorm", "aten::batch_norm", "aten::native_batch_norm"),
    "relu": ("_ReLU", "aten::relu", "aten::threshold_backward"),
    "pooling": (
        "_MaxPool",
        "_AveragePool",
        "aten::max_pool2d",
        "aten::avg_pool2d",
        "aten::adaptive_avg_pool2d",
        "aten::mean",
    ),
    "optimizer": ("Optimizer.",),
}
"""Beginnings of the names of the events that are of each kind; all other events are the rest."""


def breakdown(step: Callable[[], object], model: nn.Module) -> dict[str, float]:
    """Return the milliseconds of one `step` of `model`, by kind: `KINDS` and ``rest``; the best of a few.

    An event is of the kind of the innermost event around it that has one, so a step's time is split without
    gaps and without counting anything twice. What the profiler itself costs is in it.
    """
    with _plain_calls_recorded(model):
        return min((_profiled(step) for _ in range(_REPEATS)), key=lambda parts: sum(parts.values()))


def _profiled(step: Callable[[], object]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled, record_function("a step"):
        step()
    parts = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiled.events() or ():
        parts[_kind(event)] += event.self_cpu_time_total / 1000
    return parts


@contextmanager
def _plain_calls_recorded(model: nn.Module) -> Iterator[None]:
    """Let the profiler see what the sparse layers do in plain calls: searching, packing, compressing."""
    calls: list[tuple[Any, str, str]] = [
        (ops, "packed_weights", _PACKING),
        (ops, "compressed", _COMPRESSING),
        (ops, "compressed_again", _COMPRESSING),
        (kept, "keep", _PACKING),
        (kept, "restore", _PACKING),
        *((layer, "_selections", _SELECTION) for _, layer in sparse_layers(model)),
    ]
    before = [vars(owner).get(name) for owner, name, _ in calls]
    for owner, name, event in calls:
        vars(owner)[name] = _recorded(getattr(owner, name), event)
    try:
        yield
    finally:
        for (owner, name, _), method in zip(calls, before, strict=True):
            if method is None:
                del vars(owner)[name]
            else:
                vars(owner)[name] = method


def _recorded(method: Callable[..., Any], event: str) -> Callable[..., Any]:
    def recorded(*args: Any, **keywords: Any) -> Any:
        with record_function(event):
            return method(*args, **keywords)

    return recorded


def _kind(event: FunctionEvent | None) -> str:
    while event is not None:
        for kind, names in KINDS.items():
            if event.name.startswith(names):
                return kind
        event = event.cpu_parent
    return "rest"
