"""What is computed along axes."""

from __future__ import annotations

from typing import Any

from torchswat.runtime.aten.writer import TABLE, Function, Made, Number, Unsupported, Writer, on


def _axes(w: Writer, axes: Any) -> str:
    if axes is None or axes == []:
        return ""
    return w.constant(list(axes) if isinstance(axes, (list, tuple)) else [axes])


def _reduction(operation: str) -> Function:
    def function(w: Writer, x: Made, axes: Any = None, keep: bool = False, *, dtype: Any = None) -> str:
        # Sums of bools count; means are of floats.
        name = w.operand(x, w.dtype if w.dtype != "bool" else "int64")
        y = w.add(operation, name, _axes(w, axes), keepdims=int(keep))
        return w.add("Cast", y, to="bool") if w.dtype == "bool" else y

    return function


_REDUCTIONS = {
    "mean.dim": "ReduceMean", "mean.default": "ReduceMean", "sum.dim_IntList": "ReduceSum",
    "sum.default": "ReduceSum", "amax.default": "ReduceMax", "amin.default": "ReduceMin",
    "max.default": "ReduceMax", "min.default": "ReduceMin", "prod.default": "ReduceProd",
    "prod.dim_int": "ReduceProd", "logsumexp.default": "ReduceLogSumExp", "any.default": "ReduceMax",
    "any.dim": "ReduceMax", "any.dims": "ReduceMax", "all.default": "ReduceMin", "all.dim": "ReduceMin",
    "all.dims": "ReduceMin",
}  # fmt: skip
TABLE.update({name: _reduction(operation) for name, operation in _REDUCTIONS.items()})


def _moments(root: bool, both: bool) -> Function:
    def function(
        w: Writer, x: Made, axes: Any = None, *, correction: float | None = None, keepdim: bool = False
    ) -> Any:
        correction = 1 if correction is None else correction
        found = _axes(w, axes)
        mean = w.add("ReduceMean", x.name, found, keepdims=1)
        squares = w.add(
            "ReduceSum",
            w.add("Pow", w.add("Sub", x.name, mean), w.constant(2.0, "float32")),
            found,
            keepdims=int(keepdim),
        )
        ones = range(x.rank) if not axes else [axis % x.rank for axis in axes]
        counted = w.sizes([w.size(x, axis) for axis in ones])
        entries = w.add("Cast", w.add("ReduceProd", counted, keepdims=0), to="float32")
        y = w.add("Div", squares, w.add("Sub", entries, w.constant(correction, "float32")))
        y = w.add("Sqrt", y) if root else y
        if both:
            return y, mean if keepdim else w.add("Squeeze", mean, found or w.constant(list(range(x.rank))))
        return y

    return function


TABLE["var.correction"], TABLE["std.correction"] = _moments(False, False), _moments(True, False)
TABLE["var_mean.correction"], TABLE["std_mean.correction"] = _moments(False, True), _moments(True, True)


@on("linalg_vector_norm.default")
def _vector_norm(
    w: Writer, x: Made, p: float = 2, axes: Any = None, keep: bool = False, *, dtype: Any = None
) -> str:
    if p not in (1, 2):
        raise Unsupported(f"a norm of order {p}")
    return w.add(f"ReduceL{int(p)}", x.name, _axes(w, axes), keepdims=int(keep))


def _extreme(operation: str) -> Function:
    def function(w: Writer, x: Made, axis: int | None = None, keep: bool = False) -> str:
        name = x.name if axis is not None else w.add("Reshape", x.name, w.constant([-1]))
        return w.add(operation, name, axis=axis or 0, keepdims=int(keep))

    return function


TABLE["argmax.default"], TABLE["argmin.default"] = _extreme("ArgMax"), _extreme("ArgMin")


def _extreme_of(operation: str) -> Function:
    def function(w: Writer, x: Made, axis: int, keep: bool = False) -> tuple[str, str]:
        found = w.add(f"Reduce{operation}", x.name, w.constant([axis]), keepdims=int(keep))
        return found, w.add(f"Arg{operation}", x.name, axis=axis, keepdims=int(keep))

    return function


TABLE["max.dim"], TABLE["min.dim"] = _extreme_of("Max"), _extreme_of("Min")


@on("softmax.int", "_softmax.default", "_safe_softmax.default")
def _softmax(w: Writer, x: Made, axis: int, *more: Any, **named: Any) -> str:
    return w.add("Softmax", w.operand(x, "float32"), axis=axis)


@on("log_softmax.int", "_log_softmax.default")
def _log_softmax(w: Writer, x: Made, axis: int, *more: Any, **named: Any) -> str:
    return w.add("LogSoftmax", x.name, axis=axis)


@on("cumsum.default")
def _cumsum(w: Writer, x: Made, axis: int, *, dtype: Any = None) -> str:
    return w.add("CumSum", w.operand(x, w.dtype), w.constant(axis))


@on("topk.default")
def _topk(
    w: Writer, x: Made, k: Number, axis: int = -1, largest: bool = True, ordered: bool = True
) -> list[str]:
    return w.many("TopK", 2, x.name, w.sizes([k]), axis=axis, largest=int(largest))
