"""Which engine runs: the compiled kernels or plain torch.

The environment variable ``TORCHSWAT_ENGINE`` decides: ``auto`` (the default) takes the compiled kernels
where they were built, ``reference`` never does, ``native`` makes their absence an error. A second one,
``TORCHSWAT_ISA``, forces an instruction set of the compiled kernels (``avx512bf16``, ``avx512``, ``avx2`` or
``plain``).
"""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import-not-found]

from torchswat.errors import InvalidValue, MissingDependency, UnknownName

CHOICES = ("auto", "native", "reference")
_forced: ContextVar[str | None] = ContextVar("torchswat_engine", default=None)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or None and the reason why not.

    Raises
    ------
    InvalidValue
        Where ``TORCHSWAT_ISA`` names an instruction set that is not there.
    """
    try:
        from torchswat.engine import _native  # type: ignore[attr-defined]
    except ImportError as error:
        return None, str(error).partition(" (")[0]  # without the path of this machine
    try:
        return _native, f"compiled, {_native.isa()}"
    except ValueError as error:
        raise InvalidValue(str(error)) from None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"torchswat runs without its compiled engine, in plain torch: right but slower ({reason}). "
        "Install it again where a C++ compiler is at hand.",
        stacklevel=4,
    )


@functools.cache
def _warn_of_one_thread() -> None:
    warnings.warn(
        f"torchswat's compiled engine was built without OpenMP, so it runs on one thread where torch has "
        f"{torch.get_num_threads()}. Install it again with a compiler that has OpenMP (on macOS: brew "
        "install libomp).",
        stacklevel=4,
    )


def choice() -> str:
    """Return which engine is asked for: one of `CHOICES`."""
    asked = _forced.get() or os.environ.get("TORCHSWAT_ENGINE", "auto")
    if asked not in CHOICES:
        raise UnknownName.of("engine in TORCHSWAT_ENGINE", asked, CHOICES)
    return asked


def native() -> ModuleType | None:
    """Return the compiled module where it is to be used, else None.

    Raises
    ------
    MissingDependency
        Where ``TORCHSWAT_ENGINE=native`` asks for what was not built.
    """
    asked = choice()
    if asked == "reference":
        return None
    module, reason = _load()
    if module is None:
        if asked == "native":
            raise MissingDependency(
                f"TORCHSWAT_ENGINE=native, but the compiled engine is not there: {reason}."
            )
        _warn_once(reason)
    elif not getattr(module, "openmp", True) and torch.get_num_threads() > 1:
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
    """Return whether the entries of a tensor lie in memory of the CPU as its strides say."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not is_functorch_wrapped_tensor(tensor)
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


@contextmanager
def engine(asked: str):
    """Use the engine `asked` (one of `CHOICES`) within a ``with`` block of this thread, whatever the environment says.

    Examples
    --------
    >>> with engine("reference"):
    ...     info()["engine"]
    'reference'
    """
    if asked not in CHOICES:
        raise UnknownName.of("engine", asked, CHOICES)
    token = _forced.set(asked)
    try:
        yield
    finally:
        _forced.reset(token)


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
