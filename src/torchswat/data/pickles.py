"""Read the pickles CIFAR is published as, and nothing else.

A pickle is a program, and these files come from outside. Three fences stand before it: only the opcodes
that dictionaries, lists, texts, numbers and one array need are admitted, each looked at before anything
runs; of the names in a file only numpy's three are known; and even these never reach numpy: they stand for
recorders of ours that check what a byte array may be. What remains can build plain values only.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path

import numpy as np

from torchswat.errors import InvalidData

LARGEST = 2**29  # bytes; the largest official file (CIFAR-100, train) has 155 million
MOST_TUPLES = 100  # an array needs six

# Python 2 wrote the official files (protocol 2); subsets written anew by Python 3 use protocols 3 to 4.
OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINUNICODE", "SHORT_BINUNICODE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})  # fmt: skip


def read_pickle(path: Path) -> dict[str, object]:
    """Read a dictionary of texts, numbers, lists and uint8 arrays from a pickle of unknown origin.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        Keys as str; byte strings stay bytes; arrays are read-only ndarrays of uint8.

    Raises
    ------
    InvalidData
        The file is too large, truncated, not a pickle of a dictionary, or asks for anything beyond.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {LARGEST}")
        data = path.read_bytes()
        _check_opcodes(data)
        content = _Reader(io.BytesIO(data), encoding="bytes").load()
        if type(content) is not dict:
            raise ValueError(f"it holds {type(content).__name__}, not dict")
        return {_text(key): value.array if type(value) is _Array else value for key, value in content.items()}
    # A damaged or hostile file can end in nearly any exception: all of them mean that it is not CIFAR.
    except Exception as error:
        raise InvalidData(
            f"{path} is not a CIFAR file: {str(error) or type(error).__name__}. Fetch it again."
        ) from error


def _check_opcodes(data: bytes) -> None:
    """Refuse opcodes beyond the list, and what makes Python itself fail: memo numbers for which the
    unpickler allocates gigabytes, and tuples so deep that hashing them overflows the stack."""
    tuples = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if opcode.name not in OPCODES:
            raise ValueError(f"pickle opcode {opcode.name} at byte {position} is not allowed")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:
            raise ValueError(f"memo number {argument} at byte {position} is out of order")
        tuples += opcode.name.startswith("TUPLE")
    if tuples > MOST_TUPLES:
        raise ValueError(f"it holds {tuples} tuples, more than {MOST_TUPLES}")


def _text(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("ascii")
    if isinstance(key, str):
        return key
    raise ValueError(f"key {key!r} is not a text")


class _Reader(pickle.Unpickler):
    """The unpickler; made anew for each file, as are the recorders behind the names."""

    def find_class(self, module: str, name: str, /) -> object:
        known = {
            ("numpy", "ndarray"): _ArrayName,
            ("numpy", "dtype"): _DtypeName,
            ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
        }
        if (module, name) not in known:
            raise ValueError(f"the name {module}.{name} is not allowed")
        return known[module, name]()


class _ArrayName:
    """Stands for ``numpy.ndarray``, an argument of `_Reconstruct`; cannot be called."""

    __slots__ = ()


class _DtypeName:
    """Stands for ``numpy.dtype``; knows one."""

    __slots__ = ()

    def __call__(self, code: object, *flags: object) -> _Uint8:
        if code not in ("u1", b"u1"):
            raise ValueError(f"an array of dtype {code!r}, not uint8")
        return _Uint8()


class _Uint8:
    """Stands for ``numpy.dtype("uint8")``; its state holds nothing of interest."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Reconstruct:
    """Stands for numpy's maker of empty arrays, which the state then fills."""

    __slots__ = ()

    def __call__(self, *placeholders: object) -> _Array:
        return _Array()


class _Array:
    """Stands for an array of uint8; checks its state and only then makes it, as a view of the bytes."""

    __slots__ = ("array",)

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("an array without shape, dtype and bytes")
        _, shape, dtype, by_columns, raw = state
        if type(dtype) is not _Uint8:
            raise ValueError("an array without a dtype")
        if type(shape) is not tuple or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array of shape {shape!r}")
        if type(raw) is not bytes or len(raw) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} that does not hold {math.prod(shape)} bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")
