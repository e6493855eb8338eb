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

_LONGEST, _HEAD, _TAIL = 5000, 300, 500
"""Characters of a message; of a longer one, which quotes a huge value, what is wrong and what is allowed."""


class TorchswatError(Exception):
    """Base of every exception that is raised on purpose.

    Parameters
    ----------
    message : str
        What was wrong, with which value, what is allowed, what to call. The middle of a long one is left out.

    Examples
    --------
    >>> issubclass(InvalidValue, TorchswatError)
    True
    >>> len(str(TorchswatError(f"sparsity is {list(range(10_000))}; allowed is a number.")))
    807
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[:_HEAD]} [...] {text[-_TAIL:]}"


class InvalidValue(TorchswatError, ValueError):
    """A value is outside what is allowed.

    Examples
    --------
    >>> import torchswat
    >>> try:
    ...     torchswat.Sparsity(sparsity=80)
    ... except ValueError as error:
    ...     print(str(error).partition(";")[0])
    sparsity is 80
    """


class UnknownName(TorchswatError, ValueError):
    """A name is in none of the registries.

    Examples
    --------
    >>> import torchswat
    >>> try:
    ...     torchswat.models.create("resnet_18")
    ... except UnknownName as error:
    ...     print(str(error).partition("?")[0])
    unknown model 'resnet_18': did you mean 'resnet18'
    """

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> UnknownName:
        """Return the error for an unknown name, with the nearest known one.

        Parameters
        ----------
        kind : str
            What the name is of.
        name : object
            What was given.
        known : iterable of str
            The names that there are.

        Returns
        -------
        UnknownName

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
    """A file is damaged, truncated or of another kind than its name says.

    Examples
    --------
    >>> import pathlib, tempfile, torchswat
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "network.safetensors"
    >>> _ = path.write_bytes(b"something else")
    >>> try:
    ...     torchswat.load(path)
    ... except InvalidData:
    ...     print("not a network")
    not a network
    """


class MissingData(TorchswatError, FileNotFoundError):
    """A file that is needed does not exist.

    Examples
    --------
    >>> import torchswat
    >>> try:
    ...     torchswat.load("no-such-network.safetensors")
    ... except FileNotFoundError as error:
    ...     print(type(error).__name__)
    MissingData
    """


class NotFinite(TorchswatError, ArithmeticError):
    """A tensor holds NaN, or a loss is infinite; the message names the layer.

    Examples
    --------
    >>> import torch, torchswat
    >>> try:
    ...     torchswat.select(torch.tensor([1.0, float("nan")]), sparsity=0.5)
    ... except NotFinite as error:
    ...     print(str(error).partition(";")[0])
    tensor has NaN among its 2 entries
    """


class CheckpointError(TorchswatError, OSError):
    """A checkpoint or another file could not be written.

    Examples
    --------
    >>> import pathlib, tempfile, torchswat
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "file"
    >>> file.touch()
    >>> model = torchswat.models.create("resnet-digits")
    >>> try:
    ...     torchswat.save(model, file / "network.safetensors", input_shape=(1, 8, 8))
    ... except CheckpointError:
    ...     print("a file is no folder")
    a file is no folder
    """


class MissingDependency(TorchswatError, ImportError):
    """An optional package is needed for this call; the message says how to install it.

    Examples
    --------
    >>> issubclass(MissingDependency, ImportError)
    True
    """
