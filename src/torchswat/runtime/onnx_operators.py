"""The operators of ONNX in the operations of a graph, for every operator set that differs.

A function takes the reader, the names of inputs (empty where left out), the attributes and the names of the
outputs, and returns the names of what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from torchswat.runtime.operations import OPERATIONS

if TYPE_CHECKING:
    from torchswat.runtime.onnx_reader import _Reader as Reader
else:
    Reader = Any

Function = Callable[[Reader, list[str], dict[str, Any], list[str]], "str | Sequence[str]"]
OPERATORS: dict[str, Function] = {}


class Refused(Exception):
    """An operator in a form that no operation of a graph computes."""


Kind = TypeVar("Kind", bound=Function)


def on(*names: str) -> Callable[[Kind], Kind]:
    """Enter a function into the table."""

    def enter(function: Kind) -> Kind:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter


def _same(name: str) -> Function:
    """An operator that an operation of this name is: attributes are settings."""

    def function(
        r: Reader, inputs: list[str], attributes: dict[str, Any], outputs: list[str]
    ) -> Sequence[str]:
        row = OPERATIONS[name]
        settings = {key: value for key, value in attributes.items() if key in row.settings}
        made = len([each for each in outputs if each]) if row.outputs > 1 else 1
        return r.many(name, made, *inputs[: row.inputs[1]], **settings)

    return function


_SAME = [
    "Abs",
    "Acos",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Atan",
    "Ceil",
    "Celu",
    "Concat",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LpNormalization",
    "MatMul",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "RMSNormalization",
    "Range",
    "Reciprocal",
    "Relu",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Trilu",
    "Where",
    "Xor",
]
OPERATORS.update({name: _same(name) for name in _SAME})
OPERATORS["BatchNormalization"] = lambda r, i, a, o: r.add(
    "BatchNormalization", *i, epsilon=a.get("epsilon", 1e-5)
)
OPERATORS["Dropout"] = lambda r, i, a, o: r.add("Identity", i[0])
OPERATORS["Scatter"] = OPERATORS["ScatterElements"]
OPERATORS["com.microsoft.Gelu"] = lambda r, i, a, o: r.add("Gelu", i[0])
OPERATORS["Reshape"] = lambda r, i, a, o: r.add("Reshape", *i, allowzero=a.get("allowzero", 0))
OPERATORS["Shape"] = lambda r, i, a, o: r.add("Shape", i[0], start=a.get("start", 0), end=a.get("end", 12))


@on("Constant")
def _constant(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    (value,) = a.values()
    if isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float)):
        value = np.array(value, np.float32)
    return r.tensor(o[0], np.asarray(value))


@on("ConstantOfShape")
def _filled(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    value = np.asarray(a.get("value", np.zeros(1, np.float32))).reshape(())
    return r.add("Fill", i[0], r.tensor(f"{r.place}.value", value))


@on("EyeLike")
def _eye(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    k = a.get("k", 0)
    ones = r.add("Fill", r.add("Shape", i[0]), r.constant(1.0, "float32"))
    return r.add("Trilu", r.add("Trilu", ones, r.constant(k), upper=1), r.constant(k), upper=0)


_CAST = {
    **dict.fromkeys((1, 10, 11, 16), "float32"),
    **dict.fromkeys((4, 5, 7, 12, 13), "int64"),
    **{2: "uint8", 3: "int8", 6: "int32", 9: "bool"},
}
"""The types of ONNX by their numbers."""


@on("Cast")
def _cast(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if a["to"] not in _CAST:
        raise Refused("to a type that is no number")
    return r.add("Cast", i[0], to=_CAST[a["to"]])


@on("CastLike")
def _cast_like(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    return r.add("Cast", i[0], to=r.dtype(i[1]))


@on("Sum", "Mean")
def _sum(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    y = i[0]
    for each in i[1:]:
        y = r.add("Add", y, each)
    return y if len(i) > 1 else r.add("Identity", y)


OPERATORS["Mean"] = lambda r, i, a, o: r.add("Mul", _sum(r, i, a, o), r.constant(1 / len(i), "float32"))


@on("Pow")
def _pow(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    return r.add("Pow", *i)


@on("Mod")
def _mod(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if a.get("fmod") and r.dtype(i[0]) != "float32":
        raise Refused("with the sign of the dividend")
    if not a.get("fmod"):
        return r.add("Mod", *i)
    quotient = r.add("Div", *i)
    whole = r.add("Mul", r.add("Sign", quotient), r.add("Floor", r.add("Abs", quotient)))
    return r.add("Sub", i[0], r.add("Mul", whole, i[1]))


@on("Clip")
def _clip(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if len(i) == 1:
        i = [i[0], *(r.constant(a[key], r.dtype(i[0])) if key in a else "" for key in ("min", "max"))]
    return r.add("Clip", *i)


# ---- axes that were attributes once ------------------------------------------------------------------------


def _axes(r: Reader, i: list[str], a: dict[str, Any], at: int = 1) -> str:
    if len(i) > at:
        return i[at]
    return r.constant(a["axes"]) if a.get("axes") else ""


def _reduction(name: str) -> Function:
    def function(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
        settings = {
            "keepdims": a.get("keepdims", 1),
            "noop_with_empty_axes": a.get("noop_with_empty_axes", 0),
        }
        return r.add(name, i[0], _axes(r, i, a), **settings)

    return function


OPERATORS.update({name: _reduction(name) for name in OPERATIONS if name.startswith("Reduce")})
OPERATORS["Squeeze"] = lambda r, i, a, o: r.add("Squeeze", i[0], _axes(r, i, a))
OPERATORS["Unsqueeze"] = lambda r, i, a, o: r.add("Unsqueeze", i[0], _axes(r, i, a))


@on("Slice")
def _slice(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if len(i) == 1:
        i = [
            i[0],
            r.constant(a["starts"]),
            r.constant(a["ends"]),
            r.constant(a["axes"]) if "axes" in a else "",
        ]
    return r.add("Slice", *i)


@on("Split")
def _split(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> list[str]:
    sizes = i[1] if len(i) > 1 else r.constant(a["split"]) if a.get("split") else ""
    return r.many(
        "Split", len(o), i[0], sizes, axis=a.get("axis", 0), num_outputs=a.get("num_outputs", len(o))
    )


@on("Pad")
def _pad(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if len(i) == 1:
        i = [
            i[0],
            r.constant(a.get("pads", a.get("paddings"))),
            r.constant(a.get("value", 0.0), r.dtype(i[0])),
        ]
    return r.add("Pad", *i, mode=a.get("mode", "constant"))


@on("TopK")
def _top(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> list[str]:
    k = i[1] if len(i) > 1 else r.constant([a["k"]])
    return r.many("TopK", 2, i[0], k, axis=a.get("axis", -1), largest=a.get("largest", 1))


def _softmax(name: str) -> Function:
    """Before operator set 13 the axes from `axis` on are taken as one."""

    def function(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
        rank = r.rank(i[0])
        if r.opset >= 13:
            return r.add(name, i[0], axis=a.get("axis", -1))
        axis = a.get("axis", 1) % rank
        if axis == rank - 1:
            return r.add(name, i[0], axis=-1)
        flat = r.add(name, r.add("Flatten", i[0], axis=axis), axis=-1)
        return r.add("Reshape", flat, r.add("Shape", i[0]))

    return function


OPERATORS.update({name: _softmax(name) for name in ("Softmax", "LogSoftmax", "Hardmax")})

# ---- windows -----------------------------------------------------------------------------------------------

_AUTO = {"SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower"}


def _window(a: dict[str, Any], rank: int) -> dict[str, Any]:
    auto = a.get("auto_pad", "NOTSET")
    return {
        "strides": a.get("strides") or [1] * rank,
        "dilations": a.get("dilations") or [1] * rank,
        "pads": (a.get("pads") if auto == "NOTSET" else None) or [0] * 2 * rank,
        "auto_pad": _AUTO.get(auto, "none"),
    }


@on("Conv")
def _conv(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    return r.add("Conv", *i, group=a.get("group", 1), **_window(a, r.rank(i[0]) - 2))


@on("com.microsoft.FusedConv")
def _fused(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    y = _conv(r, i[:3], a, o)
    y = r.add("Add", y, i[3]) if len(i) > 3 and i[3] else y
    kind = a.get("activation", "")
    if kind not in ("", "Relu", "Sigmoid", "Tanh"):
        raise Refused(f"with the activation {kind}")
    return r.add(kind, y) if kind else y


@on("ConvTranspose")
def _conv_transpose(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    rank = r.rank(i[0]) - 2
    window = _window(a, rank)
    extra = a.get("output_padding") or [0] * rank
    if a.get("output_shape"):
        sizes, kernel = r.shape(i[0])[2:], r.shape(i[1])[2:]
        rows = zip(
            sizes,
            kernel,
            window["strides"],
            window["dilations"],
            extra,
            a["output_shape"][-rank:],
            strict=True,
        )
        cut = [
            stride * (size - 1) + more + (width - 1) * step + 1 - made
            for size, width, stride, step, more, made in rows
        ]
        if any(each < 0 for each in cut):
            raise Refused("with an output_shape beyond what its windows reach")
        less = [each // 2 for each in cut]
        more = [each - each // 2 for each in cut]
        lower = window["auto_pad"] == "same_upper"
        window |= {"pads": [*less, *more] if lower else [*more, *less], "auto_pad": "none"}
    return r.add("ConvTranspose", *i, group=a.get("group", 1), output_padding=extra, **window)


def _pool(name: str) -> Function:
    def function(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
        more = {
            key: a[key] for key in ("count_include_pad", "p") if key in OPERATIONS[name].settings and key in a
        }
        kernel, ceil = a["kernel_shape"], a.get("ceil_mode", 0)
        return r.add(name, i[0], kernel_shape=kernel, ceil_mode=ceil, **_window(a, len(kernel)), **more)

    return function


OPERATORS.update({name: _pool(name) for name in ("MaxPool", "AveragePool", "LpPool")})


def _global(name: str) -> Function:
    def function(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
        return r.add(name, i[0], r.constant(list(range(2, r.rank(i[0])))), keepdims=1)

    return function


OPERATORS["GlobalAveragePool"], OPERATORS["GlobalMaxPool"] = _global("ReduceMean"), _global("ReduceMax")


@on("Resize", "Upsample")
def _resize(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if "scales" in a:  # Upsample before operator set 9
        scales, sizes = r.constant(a["scales"], "float32"), ""
    elif len(i) == 2:
        scales, sizes = i[1], ""
    else:
        scales, sizes = i[2] if len(i) > 2 else "", i[3] if len(i) > 3 else ""
    if scales and sizes and r.shape(scales) in ((), (0,)):
        scales = ""
    if a.get("antialias"):
        raise Refused("with antialias")
    if a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("that keeps the aspect ratio")
    coordinates = a.get("coordinate_transformation_mode", "asymmetric" if r.opset < 11 else "half_pixel")
    if coordinates == "tf_crop_and_resize":
        raise Refused("with a region of interest")
    settings = {
        "mode": {"bilinear": "linear"}.get(a.get("mode", "nearest"), a.get("mode", "nearest")),
        "coordinates": coordinates,
        "nearest": a.get("nearest_mode", "floor" if r.opset < 11 else "round_prefer_floor"),
        "cubic_coeff_a": a.get("cubic_coeff_a", -0.75),
        "exclude_outside": a.get("exclude_outside", 0),
        "axes": a.get("axes", []),
    }
    return r.add("Resize", i[0], scales, sizes, **settings)


# ---- norms and attention -----------------------------------------------------------------------------------


@on("GroupNormalization")
def _group_norm(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    groups, channels = a["num_groups"], r.shape(i[0])[1]
    if r.shape(i[1]) != (channels,):  # before operator set 21: one for each group
        each = r.constant([1, channels // groups])
        column = [r.add("Tile", r.add("Unsqueeze", name, r.constant([1])), each) for name in i[1:]]
        i = [i[0], *(r.add("Reshape", name, r.constant([-1])) for name in column)]
    return r.add("GroupNormalization", *i, num_groups=groups, epsilon=a.get("epsilon", 1e-5))


@on("MeanVarianceNormalization")
def _mean_variance(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    axes = r.constant(a.get("axes", [0, 2, 3]))
    y = r.add("Sub", i[0], r.add("ReduceMean", i[0], axes))
    variance = r.add("ReduceMean", r.add("Mul", y, y), axes)
    return r.add("Div", y, r.add("Add", r.add("Sqrt", variance), r.constant(1e-9, "float32")))


@on("Attention")
def _attention(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    used = {key for key in ("softcap", "q_num_heads", "kv_num_heads") if a.get(key)}
    if (
        used
        or len([name for name in i if name]) > 4
        or r.shape(i[0])[1] != r.shape(i[1])[1]
        or r.rank(i[0]) != 4
    ):
        raise Refused(
            "with another form of heads than (N, heads, length, size), with a cache or with a soft cap"
        )
    return r.add("Attention", *i[:4], scale=a.get("scale", 0.0), is_causal=a.get("is_causal", 0))


@on("Einsum")
def _einsum(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    equation = a["equation"].replace(" ", "")
    if "." in equation:
        raise Refused("with an ellipsis")
    if "->" not in equation:
        letters = equation.replace(",", "")
        equation += "->" + "".join(sorted(each for each in set(letters) if letters.count(each) == 1))
    return r.add("Einsum", *i, equation=equation)


# ---- quantized networks, in float32 ------------------------------------------------------------------------


@on("DequantizeLinear")
def _dequantize(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if a.get("block_size"):
        raise Refused("in blocks")
    zero = i[2] if len(i) > 2 else ""
    if zero and r.dtype(zero) != r.dtype(i[0]):
        zero = r.add("Cast", zero, to=r.dtype(i[0]))
    return r.add("DequantizeLinear", i[0], i[1], zero, axis=a.get("axis", 1))


@on("QuantizeLinear")
def _quantize(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    if a.get("block_size") or a.get("output_dtype", 0) not in (0, 2, 3):
        raise Refused("in blocks, or to other types than int8 and uint8")
    zero = i[2] if len(i) > 2 else ""
    if zero and r.dtype(zero) not in ("int8", "uint8"):
        raise Refused(f"to {r.dtype(zero)}")
    to = {3: "int8"}.get(a.get("output_dtype", 0), "uint8")
    return r.add("QuantizeLinear", i[0], i[1], zero, axis=a.get("axis", 1), to=to)


def _floats(r: Reader, x: str, scale: str, zero: str, axis: int = 1) -> str:
    return r.add("DequantizeLinear", x, scale, zero, axis=axis)


@on("QLinearConv")
def _q_conv(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    x, w = _floats(r, i[0], i[1], i[2]), _floats(r, i[3], i[4], i[5], 0)
    bias = ""
    if len(i) > 8 and i[8]:
        scale = r.add("Mul", i[1], i[4])
        bias = r.add("Mul", r.add("Cast", i[8], to="float32"), scale)
    return r.add("QuantizeLinear", _conv(r, [x, w, bias], a, o), i[6], i[7])


@on("QLinearMatMul")
def _q_matmul(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    y = r.add("MatMul", _floats(r, i[0], i[1], i[2], -2), _floats(r, i[3], i[4], i[5], -1))
    return r.add("QuantizeLinear", y, i[6], i[7], axis=-1)


def _less_zero(r: Reader, x: str, zero: str, axis: int) -> str:
    """Return whole numbers less their zero point, as floats: sums below 2^24 are exact."""
    if not zero:
        return r.add("Cast", x, to="float32")
    sizes = r.shape(zero)
    ones = r.tensor(f"{r.place}.one{len(r.tensors)}", np.ones(sizes, np.float32))
    return r.add("DequantizeLinear", x, ones, zero, axis=axis)


@on("MatMulInteger")
def _whole_matmul(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    i = [*i, "", ""][:4]
    y = r.add("MatMul", _less_zero(r, i[0], i[2], -2), _less_zero(r, i[1], i[3], -1))
    return r.add("Cast", r.add("Round", y), to="int32")


@on("ConvInteger")
def _whole_conv(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> str:
    i = [*i, "", ""][:4]
    y = _conv(r, [_less_zero(r, i[0], i[2], 1), _less_zero(r, i[1], i[3], 0)], a, o)
    return r.add("Cast", r.add("Round", y), to="int32")


@on("DynamicQuantizeLinear")
def _dynamic(r: Reader, i: list[str], a: dict[str, Any], o: list[str]) -> list[str]:
    zero = r.constant(0.0, "float32")
    low = r.add("Min", r.add("ReduceMin", i[0], keepdims=0), zero)
    high = r.add("Max", r.add("ReduceMax", i[0], keepdims=0), zero)
    scale = r.add("Div", r.add("Sub", high, low), r.constant(255.0, "float32"))
    point = r.add(
        "Clip", r.add("Round", r.add("Div", r.add("Neg", low), scale)), zero, r.constant(255.0, "float32")
    )
    point = r.add("Cast", point, to="uint8")
    return [r.add("QuantizeLinear", i[0], scale, point), scale, point]
