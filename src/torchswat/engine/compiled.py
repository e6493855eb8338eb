"""The compiled kernels, where they are to be used: no torch is imported here.

The environment variable ``TORCHSWAT_ENGINE`` decides: ``auto`` (the default) takes the compiled kernels
where they were built, ``reference`` never does, ``native`` makes their absence an error. A second one,
``TORCHSWAT_ISA``, forces an instruction set of the compiled kernels (``avx512bf16``, ``avx512vnni``,
``avx512``, ``avx2`` or ``plain``).
"""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from torchswat.errors import InvalidValue, MissingDependency, UnknownName

CHOICES = ("auto", "native", "reference")
_forced: ContextVar[str | None] = ContextVar("torchswat_engine", default=None)


@functools.cache
def load() -> tuple[ModuleType | None, str]:
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
        f"torchswat runs without its compiled engine: right but slower ({reason}). "
        "Install it again where a C++ compiler is at hand.",
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
    module, reason = load()
    if module is None:
        if asked == "native":
            raise MissingDependency(
                f"TORCHSWAT_ENGINE=native, but the compiled engine is not there: {reason}."
            )
        _warn_once(reason)
    return module


@contextmanager
def engine(asked: str):
    """Use the engine `asked` (one of `CHOICES`) within a ``with`` block of this thread, whatever the environment says.

    Examples
    --------
    >>> from torchswat.engine.loader import info
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
