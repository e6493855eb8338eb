"""Where the time of a step goes, by kind of work, from the profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from torchswat.engine.loader import native

_CALLS = {
    "products": ("sparse_forward", "sparse_grad_input", "grad_weight"),
    "saving": ("compress_count", "compress_fill", "expand", "mark_kept", "gather_kept", "scatter_kept"),
    "selection": ("select_", "count_kept", "magnitude_mask"),
    "layout": ("nchw_to_chwn", "channels_last_to_chwn", "chwn_to_nchw", "chwn_to_channels_last"),
}
"""Beginnings of names of the compiled module's functions, which the profiler does not see; packing is part of the
products."""
_REPEATS = 3

KINDS: dict[str, tuple[str, ...]] = {
    "products": (
        "torchswat::products",
        "aten::convolution",
        "aten::conv2d",
        "aten::linear",
        "aten::mm",
        "aten::addmm",
        "aten::matmul",
    ),
    "saving": ("torchswat::saving",),
    "selection": ("torchswat::selection",),
    "layout": ("torchswat::layout", "torchswat::to_"),
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


def breakdown(step: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds of one `step`, by kind: `KINDS` and ``rest``; the best of a few.

    An event is of the kind of the innermost event around it that has one, so a step's time is split without
    gaps and without counting anything twice. What the profiler itself costs is in it.
    """
    with _plain_calls_recorded():
        return min((_profiled(step) for _ in range(_REPEATS)), key=lambda parts: sum(parts.values()))


def _profiled(step: Callable[[], object]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled, record_function("a step"):
        step()
    parts = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiled.events() or ():
        parts[_kind(event)] += event.self_cpu_time_total / 1000
    return parts


@contextmanager
def _plain_calls_recorded() -> Iterator[None]:
    """Let the profiler see the functions of the compiled module."""
    module = native()
    calls = {
        name: kind
        for name in (() if module is None else dir(module))
        for kind, beginnings in _CALLS.items()
        if name.startswith(beginnings)
    }
    before = {name: getattr(module, name) for name in calls}
    for name, kind in calls.items():
        setattr(module, name, _recorded(before[name], f"torchswat::{kind}"))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


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
