"""Products of matrices, and attention."""

from __future__ import annotations

import re

import numpy as np

from torchswat.runtime.operations.reductions import softmax
from torchswat.runtime.operations.rows import (
    BOOL,
    FLOAT,
    Operation,
    Setting,
    Settings,
    Shape,
    Value,
    broadcast_shape,
    flag,
    floats,
    real,
)

Array = np.ndarray


def product_shape(a: Shape, b: Shape) -> Shape:
    """Return the shape of a product as numpy's matmul makes it."""
    if not a or not b:
        raise ValueError(f"{a} and {b} are no matrices")
    rows = (1, *a) if len(a) == 1 else a
    columns = (*b, 1) if len(b) == 1 else b
    if rows[-1] != columns[-2]:
        raise ValueError(f"{a} and {b} cannot be multiplied")
    lead = broadcast_shape(rows[:-2], columns[:-2])
    return (*lead, *rows[-2:-1][: len(a) - 1], *columns[-1:][: len(b) - 1])


def _matmul_rule(settings: Settings, a: Value, b: Value) -> Value:
    if a.dtype != b.dtype or a.dtype.kind not in "fi":
        raise ValueError(f"{a.dtype} and {b.dtype} cannot be multiplied")
    return Value(product_shape(a.shape, b.shape), a.dtype)


def _gemm_rule(settings: Settings, a: Value, b: Value, c: Value | None = None) -> Value:
    floats(a, b, c)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ValueError(f"{a.shape} and {b.shape} are not two matrices")
    first = a.shape[::-1] if settings["transA"] else a.shape
    second = b.shape[::-1] if settings["transB"] else b.shape
    shape = product_shape(first, second)
    if c is not None and broadcast_shape(shape, c.shape) != shape:
        raise ValueError(f"a sum of shape {c.shape} does not fit {shape}")
    return Value(shape, FLOAT)


def _gemm(settings: Settings, a: Array, b: Array, c: Array | None = None) -> Array:
    y = (a.T if settings["transA"] else a) @ (b.T if settings["transB"] else b)
    if settings["alpha"] != 1:
        y *= np.float32(settings["alpha"])
    if c is not None:
        y += c if settings["beta"] == 1 else c * np.float32(settings["beta"])
    return y


_EQUATION = re.compile(r"([A-Za-z]+)(,[A-Za-z]+)*->[A-Za-z]*")


class _Equation(Setting):
    """Letters for axes, as numpy's einsum takes them, with the axes of the result."""

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= 100 and bool(_EQUATION.fullmatch(value))

    def __str__(self) -> str:
        return "letters for axes, as in 'bij,bjk->bik'"


def _einsum_rule(settings: Settings, *inputs: Value) -> Value:
    floats(*inputs)
    read, _, made = settings["equation"].partition("->")
    terms, sizes = read.split(","), {}
    if len(terms) != len(inputs) or len(set(made)) != len(made):
        raise ValueError(f"{settings['equation']!r} does not fit {len(inputs)} inputs")
    for term, value in zip(terms, inputs, strict=True):
        if len(term) != len(value.shape):
            raise ValueError(f"{term!r} does not fit {value.shape}")
        for letter, size in zip(term, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"the axis {letter!r} is {size} and {sizes[letter]} long")
    if not set(made) <= set(sizes):
        raise ValueError(f"{made!r} has axes that no input has")
    return Value(tuple(sizes[letter] for letter in made), FLOAT)


def _einsum(settings: Settings, *arrays: Array) -> Array:
    return np.asarray(np.einsum(settings["equation"], *arrays, optimize="greedy"), np.float32)


def _attention_rule(settings: Settings, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
    floats(q, k, v)
    if min(len(value.shape) for value in (q, k, v)) < 2:
        raise ValueError("queries, keys and values are matrices at least")
    scores = product_shape(q.shape, (*k.shape[:-2], k.shape[-1], k.shape[-2]))
    if not scores[-1]:
        raise ValueError("there are no keys")
    if mask is not None and (
        mask.dtype not in (BOOL, FLOAT) or broadcast_shape(scores, mask.shape) != scores
    ):
        raise ValueError(f"a mask {mask.dtype} {mask.shape} does not fit the scores {scores}")
    return Value(product_shape(scores, v.shape), FLOAT)


def _attention(settings: Settings, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    scale = settings["scale"] or q.shape[-1] ** -0.5
    scores = (q * np.float32(scale)) @ k.swapaxes(-1, -2)
    if settings["is_causal"]:
        mask = np.tri(*scores.shape[-2:], dtype=bool)
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-3e38)) if mask.dtype == BOOL else scores + mask
    return softmax(scores, -1) @ v


OPERATIONS = {
    "MatMul": Operation(_matmul_rule, lambda settings, a, b: np.matmul(a, b), (2, 2)),
    "Gemm": Operation(
        _gemm_rule,
        _gemm,
        (2, 3),
        {"alpha": real(1.0), "beta": real(1.0), "transA": flag(), "transB": flag()},
    ),
    "Einsum": Operation(_einsum_rule, _einsum, (1, 8), {"equation": _Equation("text", "i->i")}),
    "Attention": Operation(_attention_rule, _attention, (3, 4), {"scale": real(0.0, 0), "is_causal": flag()}),
}
"""``Attention``: softmax(scale * Q K^T + mask) V; a scale of 0 is 1 / sqrt(size of a query)."""
