"""The exceptions that users of the library see.

Every one says what was wrong, with which value, what is allowed and what to do. They derive from the
built-in exception a caller would expect, so that ``except ValueError`` keeps working. The command line
turns any of them into one line and exit code 2.

>>> import torch, torchswat
>>> try:
...     torchswat.sparsify_(torch.nn.Linear(4, 2), sparsity=1.5)
... except torchswat.errors.InvalidValue as error:
...     print(str(error).partition(",")[0])
sparsity is 1.5; allowed is a number from 0 (dense) to below 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_HEAD, _TAIL = 300, 500
"""Characters kept of a message that quotes a value too long to read: what is wrong, and what is allowed."""


class TorchswatError(Exception):
    """Whatever the user can mend: the base of every exception raised on purpose.

    Examples
    --------
    >>> len(str(TorchswatError(f"sparsity is {list(range(10_000))}; allowed is a number.")))
    807
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > _HEAD + _TAIL:
            text = f"{text[:_HEAD]} [...] {text[-_TAIL:]}"
        super().__init__(text)


class InvalidValue(TorchswatError, ValueError):
    """A value is outside what is allowed."""


class UnknownName(TorchswatError, ValueError):
    """A name that is in none of our registries."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> UnknownName:
        """Make the error for an unknown `name` of a `kind`, with the nearest of the `known` names.

        Examples
        --------
        >>> print(UnknownName.of("algorithm", "swatt", ["dense", "swat"]))
        unknown algorithm 'swatt': did you mean 'swat'? Known: dense, swat.
        """
        names = list(known)
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"unknown {kind} {name!r}: {hint}Known: {', '.join(names)}.")


class InvalidData(TorchswatError, ValueError):
    """A file is damaged, truncated or not what its name promises."""


class MissingData(TorchswatError, FileNotFoundError):
    """A file that is needed is not there."""


class NotFinite(TorchswatError, ArithmeticError):
    """A NaN (or an infinite loss) was met; the message names the layer."""


class CheckpointError(TorchswatError, OSError):
    """A checkpoint could not be written or read."""


class MissingDependency(TorchswatError, ImportError):
    """An optional package is needed for this call; the message says how to install it."""
