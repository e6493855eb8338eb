"""Which engine runs on tensors of torch: the compiled kernels or plain torch (see `torchswat.engine.compiled`)."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import-not-found]

from torchswat.engine import compiled
from torchswat.engine.compiled import CHOICES, choice, engine
from torchswat.engine.compiled import load as _load

__all__ = ["CHOICES", "choice", "engine", "has_memory", "info", "is_plain", "native", "native_for"]


@functools.cache
def _warn_of_one_thread() -> None:
    warnings.warn(
        f"torchswat's compiled engine was built without OpenMP, so it runs on one thread where torch has "
        f"{torch.get_num_threads()}. Install it again with a compiler that has OpenMP (on macOS: brew "
        "install libomp).",
        stacklevel=4,
    )


def native() -> ModuleType | None:
    """Return the compiled module where it is to be used, else None.

    Raises
    ------
    MissingDependency
        Where ``TORCHSWAT_ENGINE=native`` asks for what was not built.
    """
    module = compiled.native()
    if module is not None and not getattr(module, "openmp", True) and torch.get_num_threads() > 1:
        _warn_of_one_thread()
    return module


def native_for(*tensors: Tensor | None) -> ModuleType | None:
    """Return the compiled module where it can work on all of these tensors: plain ones, float32 on the CPU."""
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != torch.float32 or not has_memory(tensor)):
            return None
    return native()


def native_for_bfloat16(x: Tensor, *parameters: Tensor | None) -> ModuleType | None:
    """Return the compiled module where it can work on a bfloat16 `x` and these parameters, which are float32."""
    if x.dtype != torch.bfloat16 or not has_memory(x):
        return None
    return native_for(*parameters)


def native_for_entries(*activations: Tensor | None) -> ModuleType | None:
    """Return the compiled module where kernels that `kernel_for` finds can work on all of these tensors.

    They are plain ones on the CPU, all of float32 or all of bfloat16. Kernels that have one name alone take float32:
    `native_for` tells for them.
    """
    given = [tensor for tensor in activations if tensor is not None]
    if not all(
        tensor.dtype in ENTRIES and tensor.dtype is given[0].dtype and has_memory(tensor) for tensor in given
    ):
        return None
    return native()


def kernel_for(module: ModuleType | None, name: str, x: Tensor) -> Any:
    """Return the kernel of this name for the entries of `x`, of one of `ENTRIES`."""
    return getattr(module, name + ENTRIES[x.dtype])


ENTRIES = {torch.float32: "", torch.bfloat16: "_bf16"}
"""Types of entries that kernels of activations take, and how the names of the kernels for each end."""


_PLAIN = Tensor, torch.nn.Parameter, torch.nn.Buffer


def has_memory(tensor: Tensor) -> bool:
    """Return whether the entries of a tensor lie in memory of the CPU as its strides say, each at its own multiple."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not is_functorch_wrapped_tensor(tensor)
        and tensor.data_ptr() % tensor.itemsize == 0  # torch.frombuffer takes any offset
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Return whether no dispatch mode is on, and none of these is a fake tensor, a wrapper or a subclass."""
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(
        tensor is None
        or (
            type(tensor) in _PLAIN
            and tensor.layout is torch.strided
            and not tensor.is_meta
            and not is_functorch_wrapped_tensor(tensor)
        )
        for tensor in tensors
    )


def info() -> dict[str, Any]:
    """Return what runs here: engine, instruction set, threads, and the reason where it is the reference.

    ``openmp`` is whether the compiled kernels can run on more than one thread; None for the reference.

    Examples
    --------
    >>> sorted(info())
    ['available', 'engine', 'isa', 'openmp', 'reason', 'threads']
    """
    module, reason = _load()
    asked = choice()
    used = module if asked != "reference" else None
    return {
        "engine": "native" if used else "reference",
        "reason": reason if asked != "reference" else "asked for by TORCHSWAT_ENGINE",
        "isa": used.isa() if used else None,
        "available": used.available() if used else [],
        "openmp": getattr(used, "openmp", True) if used else None,
        "threads": torch.get_num_threads(),
    }
