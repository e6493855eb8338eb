"""What one kind of operation is made of: settings with their ranges, the shape rule, and the body in numpy.

A rule gets shapes, types and the values that are known before any image is there (sizes, axes, targets of a
reshape), and raises ValueError where they do not fit. A body gets only what its rule has checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Settings = Mapping[str, Any]

FLOAT, WHOLE, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)
TYPES = {name: np.dtype(name) for name in ("float32", "int64", "int32", "int8", "uint8", "bool")}
"""The types of results and tensors, by name."""

MOST_DIMENSIONS = 12
LARGEST = 2**28  # entries of a result


class Value(NamedTuple):
    """What is known of a result before the network runs.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Its type.
    known : ndarray or None
        Its entries, where they depend on no image.
    """

    shape: Shape
    dtype: np.dtype
    known: np.ndarray | None = None


Rule = Callable[..., "Value | list[Value]"]
"""From the settings and the inputs (`Value`, or None where one is left out) to the results, or ValueError."""
Body = Callable[..., Any]
"""From the settings and the arrays of the inputs to that of the result, or a tuple of several."""


@dataclass(frozen=True)
class Setting:
    """The allowed values of a setting.

    Attributes
    ----------
    kind : str
        ``whole``, ``real``, ``wholes`` (a list) or ``choice``.
    least, most : float
        Of every number.
    choices : tuple of str
        Of a choice.
    default : object
        What front ends take where nothing is said.
    """

    kind: str
    default: Any = None
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Return whether `value` is of the kind and within the range."""
        if self.kind == "choice":
            return isinstance(value, str) and value in self.choices
        if self.kind == "whole":
            return type(value) is int and self.least <= value <= self.most
        if self.kind == "real":
            return type(value) in (int, float) and math.isfinite(value) and self.least <= value <= self.most
        each = isinstance(value, (list, tuple)) and len(value) <= 2 * MOST_DIMENSIONS
        return each and all(type(size) is int and self.least <= size <= self.most for size in value)

    def __str__(self) -> str:
        if self.kind == "choice":
            return " or ".join(map(repr, self.choices))
        name = {"whole": "a whole number", "real": "a number", "wholes": "a list of whole numbers"}[self.kind]
        return f"{name} from {self.least:g} to {self.most:g}"


def whole(default: int, least: int, most: int) -> Setting:
    """A whole number."""
    return Setting("whole", default, least, most)


def flag(default: int = 0) -> Setting:
    """0 or 1."""
    return whole(default, 0, 1)


def real(default: float, least: float = -1e30, most: float = 1e30) -> Setting:
    """A finite number."""
    return Setting("real", default, least, most)


def wholes(default: Sequence[int] = (), least: int = 0, most: int = 2**20) -> Setting:
    """A list of whole numbers."""
    return Setting("wholes", tuple(default), least, most)


def choice(*choices: str) -> Setting:
    """One of a few words, the first by default."""
    return Setting("choice", choices[0], choices=choices)


AXIS = whole(-1, -MOST_DIMENSIONS, MOST_DIMENSIONS - 1)


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes
    ----------
    rule, body : callable
        See above.
    inputs : (int, int)
        How many it takes, at least and at most.
    settings : mapping of str to Setting
        By name.
    optional : tuple of int
        Inputs that may be left out although others follow.
    outputs : int
        How many results it has at most.
    is_view : bool
        Whether a result may lie in the memory of the first input.
    """

    rule: Rule
    body: Body
    inputs: tuple[int, int] = (1, 1)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    optional: tuple[int, ...] = ()
    outputs: int = 1
    is_view: bool = False


MANY = 10_000  # inputs of a concatenation


# ---- what rules share --------------------------------------------------------------------------------------


def count(shape: Sequence[int]) -> int:
    """Return how many entries there are."""
    return math.prod(shape)


def axis_of(axis: int, rank: int, more: int = 0) -> int:
    """Return an axis counted from the front; `more` where it names a place among the axes of the result."""
    if not -rank - more <= axis < rank + more:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % (rank + more)


def axes_of(axes: Sequence[int], rank: int, more: int = 0) -> tuple[int, ...]:
    """Return axes counted from the front; none may be named twice."""
    found = tuple(axis_of(int(axis), rank, more) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"the axes {tuple(axes)} name one twice")
    return found


def known(value: Value | None, what: str, most: int = 2**16) -> list[Any]:
    """Return the entries of an input that must not depend on images."""
    if value is None:
        raise ValueError(f"the {what} are missing")
    if value.known is None:
        raise ValueError(
            f"the {what} depend on the values of the input, and only sizes and constants may decide them"
        )
    if value.known.size > most or value.known.ndim > 1:
        raise ValueError(f"the {what} have the shape {value.shape}; a short row is expected")
    return value.known.reshape(-1).tolist()


def same(settings: Settings, x: Value, *others: Value | None) -> Value:
    """Return the shape and type of the first input."""
    return Value(x.shape, x.dtype)


def broadcast_shape(*shapes: Shape) -> Shape:
    """Return the common shape."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"the shapes {', '.join(map(str, shapes))} do not fit each other") from None


def broadcast(settings: Settings, *inputs: Value) -> Value:
    """Return the result of inputs of one type that are broadcast to one shape."""
    types = {value.dtype for value in inputs}
    if len(types) != 1:
        raise ValueError(f"its inputs are {', '.join(sorted(map(str, types)))}; one type is expected")
    return Value(broadcast_shape(*(value.shape for value in inputs)), inputs[0].dtype)


def floats(*values: Value | None) -> None:
    """Refuse inputs that are not float32."""
    for value in values:
        if value is not None and value.dtype != FLOAT:
            raise ValueError(f"an input is {value.dtype}; float32 is expected")


def float_same(settings: Settings, x: Value, *others: Value | None) -> Value:
    """Return the shape of the first input; refuse inputs that are not float32."""
    floats(x, *others)
    return Value(x.shape, FLOAT)
