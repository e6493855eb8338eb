"""Products of matrices, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchswat.runtime.aten.writer import Made, Unsupported, Writer, name_of, on, scaled


@on("linear.default")
def _linear(w: Writer, x: Made, weight: Made, bias: Made | None = None) -> str:
    if x.rank == 2:
        return w.add("Gemm", x.name, weight.name, name_of(bias), transB=1)
    y = w.add("MatMul", x.name, w.add("Transpose", weight.name, perm=(1, 0)))
    return y if bias is None else w.add("Add", y, bias.name)


@on("matmul.default", "mm.default", "bmm.default", "dot.default", "mv.default")
def _matmul(w: Writer, a: Made, b: Made) -> str:
    return w.add("MatMul", w.operand(a, w.dtype), w.operand(b, w.dtype))


@on("addmm.default", "baddbmm.default")
def _addmm(w: Writer, c: Made, a: Made, b: Made, *, beta: float = 1, alpha: float = 1) -> str:
    y = scaled(w, w.add("MatMul", a.name, b.name), alpha)
    return w.add("Add", y, scaled(w, c.name, beta))


@on("einsum.default")
def _einsum(w: Writer, equation: str, operands: Sequence[Made], *, path: Any = None) -> str:
    equation = equation.replace(" ", "")
    if "." in equation:
        raise Unsupported("an ellipsis in einsum")
    if "->" not in equation:
        letters = equation.replace(",", "")
        equation += "->" + "".join(sorted(each for each in set(letters) if letters.count(each) == 1))
    return w.add("Einsum", *(each.name for each in operands), equation=equation)


@on("scaled_dot_product_attention.default")
def _attention(
    w: Writer,
    q: Made,
    k: Made,
    v: Made,
    mask: Made | None = None,
    dropout: float = 0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    if enable_gqa:
        raise Unsupported("attention with fewer heads of keys than of queries")
    return w.add(
        "Attention", q.name, k.name, v.name, name_of(mask), scale=scale or 0.0, is_causal=int(is_causal)
    )
