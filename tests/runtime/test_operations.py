"""Every operation against ONNX Runtime (or torch, where ONNX has none such), over shapes and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchswat.engine.compiled import engine
from torchswat.errors import InvalidData, InvalidValue
from torchswat.runtime.graph import BATCH, Graph, Input, node
from torchswat.runtime.infer import constant, infer
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.session import Sessions

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

Array = np.ndarray
Draw = Callable[[Any], Any]
Case = tuple[str, list[Array | None], dict[str, Any], int]
"""An operator of ONNX, its inputs (those behind the first few are constants), attributes, and how many vary."""

OPSET = 21


def floats(draw: Draw, shape: Any) -> Array:
    """Return numbers that are drawn for a shape."""
    return np.random.default_rng(draw(st.integers(0, 999))).standard_normal(shape).astype(np.float32)


def shapes(least: int = 1, most: int = 4, side: int = 5) -> Any:
    """Shapes without empty axes."""
    return st.lists(st.integers(1, side), min_size=least, max_size=most).map(tuple)


def maps(draw: Draw, rank: int | None = None, channels: int | None = None) -> tuple[int, ...]:
    """Return (N, C, ...) with one to three axes of space."""
    rank = draw(st.integers(1, 3)) if rank is None else rank
    space = [draw(st.integers(3, 9)) for _ in range(rank)]
    return draw(st.integers(1, 3)), channels or draw(st.integers(1, 6)), *space


def whole(least: int, most: int) -> Any:
    """Whole numbers."""
    return st.integers(least, most)


# ---- cases: what ONNX calls each, by the name of our operation ----------------------------------------------


def unary(name: str, positive: bool = False, **attributes: Any) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = floats(draw, draw(shapes()))
        return name, [np.abs(x) + 0.1 if positive else x * 2], attributes, 1

    return case


def fitting(draw: Draw) -> tuple[Array, Array]:
    """Two arrays that broadcast."""
    shape = draw(shapes())
    cut = draw(whole(0, len(shape)))
    other = tuple(1 if draw(st.booleans()) else size for size in shape[cut:])
    return floats(draw, shape), floats(draw, other)


def pair(
    name: str, make: Callable[[Array], Array] = lambda x: x, **attributes: Any
) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        a, b = fitting(draw)
        return name, [make(x) for x in ((a, b) if draw(st.booleans()) else (b, a))], attributes, 2

    return case


def rounded(x: Array) -> Array:
    return np.round(x)


def truth(x: Array) -> Array:
    return x > 0


def reduction(name: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = draw(shapes())
        axes = draw(
            st.lists(
                whole(-len(shape), len(shape) - 1), max_size=len(shape), unique_by=lambda a: a % len(shape)
            )
        )
        x = np.abs(floats(draw, shape)) + 0.1
        return name, [x, *([np.array(axes)] if axes else [])], {"keepdims": draw(whole(0, 1))}, 1

    return case


def along(name: str, **more: Any) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = draw(shapes())
        attributes = {"axis": draw(whole(-len(shape), len(shape) - 1))}
        attributes |= {key: draw(value) for key, value in more.items()}
        return name, [floats(draw, shape)], attributes, 1

    return case


def conv(draw: Draw) -> Case:
    group = draw(st.sampled_from((1, 1, 2, 4)))
    shape = maps(draw, channels=group * draw(whole(1, 3)))
    rank = len(shape) - 2
    kernel = [draw(whole(1, 3)) for _ in range(rank)]
    weight = floats(draw, (group * draw(whole(1, 3)), shape[1] // group, *kernel))
    weight *= np.random.default_rng(0).random(weight.shape) < draw(st.sampled_from((0.3, 1)))
    attributes: dict[str, Any] = {"group": group, "strides": [draw(whole(1, 3)) for _ in range(rank)]}
    if draw(st.booleans()):
        attributes["auto_pad"] = draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER", "VALID")))
    else:
        attributes["pads"] = [draw(whole(0, 2)) for _ in range(2 * rank)]
        attributes["dilations"] = [draw(whole(1, 2)) for _ in range(rank)]
        if any(
            size < (k - 1) * d + 1
            for size, k, d in zip(shape[2:], kernel, attributes["dilations"], strict=True)
        ):
            attributes["dilations"] = [1] * rank
    bias = [floats(draw, len(weight))] if draw(st.booleans()) else []
    return "Conv", [floats(draw, shape), weight, *bias], attributes, 1


def conv_transpose(draw: Draw) -> Case:
    group = draw(st.sampled_from((1, 2)))
    shape = maps(draw, rank=draw(whole(1, 2)), channels=group * draw(whole(1, 3)))
    rank = len(shape) - 2
    kernel = [draw(whole(2, 3)) for _ in range(rank)]
    strides = [draw(whole(1, 3)) for _ in range(rank)]
    weight = floats(draw, (shape[1], draw(whole(1, 3)), *kernel))
    attributes = {
        "group": group,
        "strides": strides,
        "pads": [draw(whole(0, 1)) for _ in range(2 * rank)],
        "output_padding": [draw(whole(0, stride - 1)) for stride in strides],
    }
    return (
        "ConvTranspose",
        [floats(draw, shape), weight, floats(draw, weight.shape[1] * group)],
        attributes,
        1,
    )


def pool(name: str, **more: Any) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = maps(draw)
        rank = len(shape) - 2
        kernel = [draw(whole(1, 3)) for _ in range(rank)]
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": [draw(whole(1, 3)) for _ in range(rank)],
        }
        attributes["pads"] = [draw(whole(0, k - 1)) for k in kernel * 2]
        if name != "LpPool":
            attributes["ceil_mode"] = draw(whole(0, 1))
        if name == "MaxPool":
            attributes["dilations"] = [draw(whole(1, 2)) if size > 4 else 1 for size in shape[2:]]
        attributes |= {key: draw(value) for key, value in more.items()}
        return name, [floats(draw, shape)], attributes, 1

    return case


def batch_norm(draw: Draw) -> Case:
    shape = maps(draw)
    values = [floats(draw, shape[1]) for _ in range(4)]
    return (
        "BatchNormalization",
        [floats(draw, shape), *values[:3], np.abs(values[3]) + 0.1],
        {"epsilon": 1e-3},
        1,
    )


def instance_norm(draw: Draw) -> Case:
    shape = maps(draw)
    return "InstanceNormalization", [floats(draw, shape), *(floats(draw, shape[1]) for _ in range(2))], {}, 1


def group_norm(draw: Draw) -> Case:
    groups = draw(whole(1, 3))
    shape = maps(draw, channels=groups * draw(whole(1, 3)))
    values = [floats(draw, shape[1]) for _ in range(2)]
    return "GroupNormalization", [floats(draw, shape), *values], {"num_groups": groups}, 1


def layer_norm(draw: Draw) -> Case:
    shape = draw(shapes(2))
    axis = draw(whole(0, len(shape) - 1))
    values = [floats(draw, shape[axis:]) for _ in range(draw(whole(1, 2)))]
    return "LayerNormalization", [floats(draw, shape), *values], {"axis": axis - len(shape)}, 1


def matmul(draw: Draw) -> Case:
    lead, m, k, n = draw(shapes(0, 2)), *(draw(whole(1, 6)) for _ in range(3))
    return "MatMul", [floats(draw, (*lead, m, k)), floats(draw, (k, n))], {}, draw(whole(1, 2))


def gemm(draw: Draw) -> Case:
    m, k, n = (draw(whole(1, 20)) for _ in range(3))
    a, b = draw(whole(0, 1)), draw(whole(0, 1))
    x, y = floats(draw, (k, m) if a else (m, k)), floats(draw, (n, k) if b else (k, n))
    y *= np.random.default_rng(0).random(y.shape) < draw(st.sampled_from((0.2, 1)))
    attributes = {"transA": a, "transB": b, "alpha": draw(st.sampled_from((1.0, 0.5))), "beta": 2.0}
    return "Gemm", [x, y, floats(draw, draw(st.sampled_from(((n,), (1, n), (m, n), ()))))], attributes, 1


def einsum(draw: Draw) -> Case:
    b, i, j, k = (draw(whole(1, 4)) for _ in range(4))
    equation = draw(st.sampled_from(("bij,bjk->bik", "bij,bkj->bk", "bij,bjk->kib", "bij,bjk")))
    second = (b, k, j) if "bkj" in equation else (b, j, k)
    return "Einsum", [floats(draw, (b, i, j)), floats(draw, second)], {"equation": equation}, 2


def reshape(draw: Draw) -> Case:
    shape = draw(shapes(2, 4))
    size = int(np.prod(shape))
    target = draw(st.sampled_from(([-1], [0, -1], [1, size], [shape[0], -1, 1])))
    return "Reshape", [floats(draw, shape), np.array(target)], {}, 1


def sliced(draw: Draw) -> Case:
    shape = draw(shapes(1, 3, 7))
    axes = list(range(len(shape)))[: draw(whole(1, len(shape)))]
    lists = [[draw(whole(-9, 9)) for _ in axes] for _ in range(2)]
    steps = [draw(st.sampled_from((1, 2, 3, -1, -2))) for _ in axes]
    return "Slice", [floats(draw, shape), *map(np.array, (*lists, axes, steps))], {}, 1


def split(draw: Draw) -> Case:
    parts = [draw(whole(1, 3)) for _ in range(draw(whole(1, 3)))]
    return "Split", [floats(draw, (2, sum(parts))), np.array(parts)], {"axis": 1, "outputs": len(parts)}, 1


def joined(draw: Draw) -> Case:
    shape, axis = draw(shapes(1, 4)), 0
    parts = [floats(draw, (draw(whole(1, 4)), *shape[1:])) for _ in range(draw(whole(1, 3)))]
    return "Concat", list(parts), {"axis": axis}, len(parts)


def gather(name: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = draw(shapes(1, 3))
        axis = draw(whole(-len(shape), len(shape) - 1))
        size = shape[axis]
        wanted = draw(shapes(0, 2)) if name == "Gather" else shape
        indices = np.random.default_rng(draw(whole(0, 99))).integers(-size, size, wanted)
        return name, [floats(draw, shape), indices], {"axis": axis}, draw(whole(1, 2))

    return case


def gather_nd(draw: Draw) -> Case:
    shape = draw(shapes(2, 3))
    batch = draw(whole(0, 1))
    depth = draw(whole(1, len(shape) - batch))
    lead = (shape[0], 2) if batch else (3,)
    sizes = shape[batch : batch + depth]
    indices = np.stack([np.random.default_rng(1).integers(-size, size, lead) for size in sizes], -1)
    return "GatherND", [floats(draw, shape), indices], {"batch_dims": batch}, 2


def scatter(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    axis = draw(whole(0, len(shape) - 1))
    order = np.random.default_rng(2).permuted(np.indices(shape)[axis], axis=axis)
    reduce = draw(st.sampled_from(("none", "add", "mul", "max")))
    return (
        "ScatterElements",
        [floats(draw, shape), order, floats(draw, shape)],
        {"axis": axis, "reduction": reduce},
        3,
    )


def scatter_nd(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    indices = np.random.default_rng(3).permutation(shape[0])[: draw(whole(1, shape[0]))][:, None]
    updates = floats(draw, (len(indices), *shape[1:]))
    return (
        "ScatterND",
        [floats(draw, shape), indices, updates],
        {"reduction": draw(st.sampled_from(("none", "add")))},
        3,
    )


def pad(draw: Draw) -> Case:
    shape = draw(shapes(1, 4))
    mode = draw(st.sampled_from(("constant", "reflect", "edge", "wrap")))
    most = {"reflect": [size - 1 for size in shape], "wrap": shape}.get(mode, [3] * len(shape))
    pads = [
        draw(whole(-1 if mode == "constant" and shape[at % len(shape)] > 2 else 0, most[at % len(shape)]))
        for at in range(2 * len(shape))
    ]
    value = [np.float32(1.5)] if mode == "constant" else []
    return "Pad", [floats(draw, shape), np.array(pads), *map(np.asarray, value)], {"mode": mode}, 1


def resize(draw: Draw) -> Case:
    shape = maps(draw, rank=2)
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    how = draw(st.sampled_from(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")))
    attributes = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        attributes["nearest_mode"] = draw(
            st.sampled_from(("floor", "round_prefer_floor", "ceil", "round_prefer_ceil"))
        )
    x = floats(draw, shape)
    if draw(st.booleans()):
        scales = np.array([1, 1, *(draw(st.sampled_from((0.5, 1.5, 2, 3))) for _ in "hw")], np.float32)
        return "Resize", [x, None, scales], attributes, 1
    sizes = np.array([*shape[:2], *(draw(whole(1, 12)) for _ in "hw")])
    return "Resize", [x, None, None, sizes], attributes, 1


def quantize(draw: Draw) -> Case:
    shape = draw(shapes(2, 3))
    dtype = draw(st.sampled_from((np.uint8, np.int8)))
    size = () if draw(st.booleans()) else (shape[1],)
    zero = np.full(size, draw(whole(-20, 20)) if dtype == np.int8 else draw(whole(0, 200)), dtype)
    return (
        "QuantizeLinear",
        [floats(draw, shape) * 3, np.full(size, 0.0625, np.float32), zero],
        {"axis": 1},
        1,
    )


def dequantize(draw: Draw) -> Case:
    _, (x, scale, zero), attributes, _ = quantize(draw)
    assert x is not None and scale is not None and zero is not None
    return "DequantizeLinear", [(x * 20).astype(np.int32).astype(zero.dtype), scale, zero], attributes, 1


def attribute(name: str, key: str, values: Any, shape: Any = None) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        return name, [floats(draw, draw(shapes() if shape is None else shape))], {key: draw(values)}, 1

    return case


def transposed(draw: Draw) -> Case:
    shape = draw(shapes())
    return "Transpose", [floats(draw, shape)], {"perm": draw(st.permutations(range(len(shape))))}, 1


def expand(draw: Draw) -> Case:
    x, y = fitting(draw)
    return "Expand", [y, np.array(x.shape)], {}, 1


def squeeze(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    return "Squeeze", [floats(draw, (1, *shape, 1)), np.array([0, -1][: draw(whole(1, 2))])], {}, 1


def unsqueeze(draw: Draw) -> Case:
    return (
        "Unsqueeze",
        [floats(draw, draw(shapes(1, 3))), np.array(draw(st.sampled_from(([0], [1, -1], [0, 2]))))],
        {},
        1,
    )


def tile(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    return "Tile", [floats(draw, shape), np.array([draw(whole(1, 3)) for _ in shape])], {}, 1


def where(draw: Draw) -> Case:
    a, b = fitting(draw)
    return "Where", [floats(draw, a.shape) > 0, a, b], {}, 3


def clip(draw: Draw) -> Case:
    bounds: list[Array | None] = [np.float32(-0.5).reshape(()), np.float32(0.25).reshape(())]
    if draw(st.booleans()):
        bounds[draw(whole(0, 1))] = None
    return "Clip", [floats(draw, draw(shapes())), *bounds], {}, 1


def running(draw: Draw) -> Case:
    shape = draw(shapes())
    attributes = {"exclusive": draw(whole(0, 1)), "reverse": draw(whole(0, 1))}
    return "CumSum", [floats(draw, shape), np.array(draw(whole(-len(shape), len(shape) - 1)))], attributes, 1


def largest(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = draw(whole(-len(shape), len(shape) - 1))
    attributes = {"axis": axis, "largest": draw(whole(0, 1)), "outputs": 2}
    return "TopK", [floats(draw, shape), np.array([draw(whole(1, shape[axis]))])], attributes, 1


def one_hot(draw: Draw) -> Case:
    indices = np.random.default_rng(draw(whole(0, 99))).integers(-3, 3, draw(shapes(1, 2)))
    return "OneHot", [indices, np.array(3), np.array([0, 5], np.float32)], {"axis": draw(whole(-1, 1))}, 1


def triangle(draw: Draw) -> Case:
    return (
        "Trilu",
        [floats(draw, draw(shapes(2, 3))), np.array(draw(whole(-3, 3)))],
        {"upper": draw(whole(0, 1))},
        1,
    )


def prelu(draw: Draw) -> Case:
    shape = maps(draw, 2)
    return "PRelu", [floats(draw, shape), floats(draw, (shape[1], 1, 1))], {}, 1


def blocks(name: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        b = draw(whole(1, 3))
        n, c, h, w = (draw(whole(1, 3)) for _ in range(4))
        if name == "SpaceToDepth":
            return name, [floats(draw, (n, c, h * b, w * b))], {"blocksize": b}, 1
        return (
            name,
            [floats(draw, (n, c * b * b, h, w))],
            {"blocksize": b, "mode": draw(st.sampled_from(("DCR", "CRD")))},
            1,
        )

    return case


def cast(draw: Draw) -> Case:
    return "Cast", [floats(draw, draw(shapes())) * 9], {"to": draw(st.sampled_from((1, 6, 7, 9)))}, 1


def filled(draw: Draw) -> Case:
    return (
        "ConstantOfShape",
        [np.array(draw(shapes()))],
        {"value": onnx.numpy_helper.from_array(np.array([2.5], np.float32))},
        0,
    )


def ranged(draw: Draw) -> Case:
    ends = draw(whole(-3, 3)), draw(whole(4, 9)), draw(whole(1, 3))
    return "Range", [np.array(each) for each in ends], {}, 0


def local(draw: Draw) -> Case:
    return (
        "LRN",
        [floats(draw, maps(draw, 2))],
        {"size": draw(st.sampled_from((1, 3, 5))), "alpha": 0.1, "beta": 0.6, "bias": 1.5},
        1,
    )


PLAIN = [
    "Abs",
    "Ceil",
    "Cos",
    "Cosh",
    "Erf",
    "Exp",
    "Floor",
    "HardSwish",
    "Identity",
    "IsNaN",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Tan",
    "Tanh",
    "Atan",
    "IsInf",
]

WITH_ALPHA = "Celu", "Elu", "LeakyRelu", "Selu", "ThresholdedRelu", "HardSigmoid"


def power(draw: Draw) -> Case:
    exponent = np.float32(draw(st.sampled_from((2, 0.5, 3, -1, 1.5)))).reshape(())
    return "Pow", [np.abs(floats(draw, draw(shapes()))), exponent], {}, 1


CASES: dict[str, Callable[[Draw], Case]] = {
    **{name: unary(name) for name in PLAIN},
    **{name: unary(name, positive=True) for name in ("Log", "Sqrt", "Reciprocal")},
    **{name: reduction(name) for name in OPERATIONS if name.startswith("Reduce")},
    **{name: pair(name) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{name: pair(name, rounded) for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")},
    **{name: pair(name, truth) for name in ("And", "Or", "Xor")},
    **{name: along(name) for name in ("Softmax", "LogSoftmax", "Hardmax")},
    **{
        name: along(name, keepdims=whole(0, 1), select_last_index=whole(0, 1)) for name in ("ArgMax", "ArgMin")
    },
    **{name: attribute(name, "alpha", st.sampled_from((0.5, 1.5))) for name in WITH_ALPHA},
    **{name: gather(name) for name in ("Gather", "GatherElements")},
    **{name: blocks(name) for name in ("DepthToSpace", "SpaceToDepth")},
    "Acos": lambda draw: ("Acos", [np.tanh(floats(draw, draw(shapes())))], {}, 1),
    "Asin": lambda draw: ("Asin", [np.tanh(floats(draw, draw(shapes())))], {}, 1),
    "AveragePool": pool("AveragePool", count_include_pad=whole(0, 1)),
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": joined,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "CumSum": running,
    "DequantizeLinear": dequantize,
    "Einsum": einsum,
    "Expand": expand,
    "Fill": filled,
    "Flatten": attribute("Flatten", "axis", whole(0, 2), shapes(2)),
    "GatherND": gather_nd,
    "Gelu": attribute("Gelu", "approximate", st.sampled_from(("none", "tanh"))),
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local,
    "LayerNormalization": layer_norm,
    "LpNormalization": along("LpNormalization", p=whole(1, 2)),
    "LpPool": pool("LpPool", p=whole(1, 3)),
    "MatMul": matmul,
    "MaxPool": pool("MaxPool"),
    "Mod": pair("Mod", lambda x: np.where(np.round(x * 5) == 0, 3, np.round(x * 5)).astype(np.int64)),
    "Not": lambda draw: ("Not", [floats(draw, draw(shapes())) > 0], {}, 1),
    "OneHot": one_hot,
    "PRelu": prelu,
    "Pad": pad,
    "Pow": power,
    "QuantizeLinear": quantize,
    "Range": ranged,
    "Reshape": reshape,
    "Resize": resize,
    "ScatterElements": scatter,
    "ScatterND": scatter_nd,
    "Shape": attribute("Shape", "start", whole(-2, 2)),
    "Size": unary("Size"),
    "Slice": sliced,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "TopK": largest,
    "Transpose": transposed,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
    "Where": where,
}  # fmt: skip


def model_of(case: Case) -> tuple[Any, dict[str, Array]]:
    """Return an ONNX model of one node, and what it is fed."""
    name, inputs, attributes, vary = case
    attributes = dict(attributes)
    outputs = [f"y{at}" for at in range(attributes.pop("outputs", 1))]
    names = ["" if each is None else f"x{at}" for at, each in enumerate(inputs)]
    tensor = onnx.helper.np_dtype_to_tensor_dtype
    feeds = {n: np.asarray(x) for n, x in zip(names[:vary], inputs[:vary], strict=True) if x is not None}
    sources = [onnx.helper.make_tensor_value_info(n, tensor(x.dtype), x.shape) for n, x in feeds.items()]
    constants = [
        onnx.numpy_helper.from_array(np.asarray(x), n)
        for n, x in list(zip(names, inputs, strict=True))[vary:]
        if x is not None
    ]
    made = onnx.helper.make_node(name, names, outputs, name="it", **attributes)
    graph = onnx.helper.make_graph(
        [made], "one", sources, [onnx.ValueInfoProto(name=n) for n in outputs], constants
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10
    ), feeds


def reference(model: Any, feeds: dict[str, Array]) -> list[Array]:
    """Return what ONNX Runtime makes of it, or onnx's own evaluator where that lacks the operator."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)
    except Exception as error:  # NotImplemented and Fail are no subclasses of a public class
        if "NOT_IMPLEMENTED" not in str(error) and "type" not in str(error):
            raise
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, feeds)


def same(found: list[Array], expected: list[Array], tolerance: float = 1e-4) -> None:
    """Complain where shapes or entries differ."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        if mine.dtype == np.float32:
            scale = max(1e-3, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0)))
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * scale)
        else:
            assert np.array_equal(mine, theirs)


def test_wrong_results_are_noticed():
    with pytest.raises(AssertionError):
        same([np.ones(2, np.float32)], [np.array([1, 1.01], np.float32)])
    with pytest.raises(AssertionError):
        same([np.ones(2, np.float32)], [np.ones((2, 1), np.float32)])


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=15)
@given(data=st.data())
def test_operations_of_onnx(name: str, data: st.DataObject):
    from torchswat.runtime.onnx_reader import _Reader

    case = CASES[name](data.draw)
    model, feeds = model_of(case)
    try:
        expected = reference(model, feeds)
    except Exception as error:
        pytest.fail(f"the reference refuses {case[0]} {case[2]}: {str(error)[:300]}")
    graph, tensors = _Reader(model, {}).read(1)
    for how in ("auto", "reference"):
        with engine(how):
            same(Sessions(graph, tensors).run(list(feeds.values()), 1), expected)


# ---- those of torch ----------------------------------------------------------------------------------------


def run(operation: str, arrays: list[Array], **values: Any) -> Array:
    """Run one operation in a session; the arrays are its inputs."""
    inputs = tuple(
        Input(f"x{at}", (BATCH, *x.shape[1:]) if x.ndim else (), x.shape or (), x.dtype.name)
        for at, x in enumerate(arrays)
    )
    graph = Graph(
        inputs, (node(operation, [each.name for each in inputs], "y", **values),), ("y",), rows=False
    )
    return Sessions(graph, {}).run(arrays, 1)[0]


TORCH = ("AdaptiveAveragePool", "AdaptiveMaxPool", "Attention", "Expm1", "Log1p", "RMSNormalization", "Swish")


def test_every_operation_is_compared():
    assert set(CASES) | set(TORCH) == set(OPERATIONS)


@settings(max_examples=25)
@given(st.data())
def test_adaptive_pools(data: st.DataObject):
    x = floats(data.draw, maps(data.draw, 2))
    sizes = data.draw(whole(1, 6)), data.draw(whole(1, 6))
    t = torch.from_numpy(x)
    same([run("AdaptiveAveragePool", [x], sizes=sizes)], [F.adaptive_avg_pool2d(t, sizes).numpy()])
    same([run("AdaptiveMaxPool", [x], sizes=sizes)], [F.adaptive_max_pool2d(t, sizes).numpy()])


@settings(max_examples=25)
@given(st.data())
def test_attention(data: st.DataObject):
    n, heads, q, k, size = (data.draw(whole(1, 5)) for _ in range(5))
    arrays = [floats(data.draw, (n, heads, length, size)) for length in (q, k, k)]
    tensors = [torch.from_numpy(each) for each in arrays]
    expected = F.scaled_dot_product_attention(*tensors)
    same([run("Attention", arrays)], [expected.numpy()])
    causal = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.7)
    same([run("Attention", arrays, is_causal=1, scale=0.7)], [causal.numpy()])
    mask = floats(data.draw, (n, 1, q, k))
    masked = F.scaled_dot_product_attention(*tensors, attn_mask=torch.from_numpy(mask))
    same([run("Attention", [*arrays, mask])], [masked.numpy()])


@settings(max_examples=25)
@given(st.data())
def test_others_of_torch(data: st.DataObject):
    x = floats(data.draw, data.draw(shapes()))
    t = torch.from_numpy(x)
    same([run("Swish", [x])], [F.silu(t).numpy()])
    same([run("Expm1", [x])], [torch.expm1(t).numpy()])
    same([run("Log1p", [np.abs(x)])], [torch.log1p(t.abs()).numpy()])
    same([run("RMSNormalization", [x], epsilon=1e-3)], [F.rms_norm(t, x.shape[-1:], eps=1e-3).numpy()])


def test_values_that_no_rule_sees_are_refused_at_the_run():
    graph = Graph(
        (Input("x", (BATCH,), (2,)), Input("i", (1,), (1,), "int64")),
        (node("Gather", ["x", "i"], "y"),),
        ("y",),
        False,
    )
    with pytest.raises(InvalidValue, match=r"node 'y'.*an index is 7"):
        Sessions(graph, {}).run([np.zeros(2, np.float32), np.array([7])], 1)


@settings(max_examples=100)
@given(st.data())
def test_rules_are_right_or_refuse(data: st.DataObject):
    """Whatever inputs an operation is given: a rule that lets them through says what comes out, or the run refuses."""
    name = data.draw(st.sampled_from(sorted(OPERATIONS)))
    row = OPERATIONS[name]
    number = data.draw(whole(row.inputs[0], max(row.inputs[0], min(row.inputs[1], 4))))
    arrays = [
        np.asarray(floats(data.draw, data.draw(shapes(0, 4, 4))) * 2).astype(
            data.draw(st.sampled_from(("float32", "int64", "bool")))
        )
        for _ in range(number)
    ]
    inputs = tuple(Input(f"x{at}", x.shape, x.shape, x.dtype.name) for at, x in enumerate(arrays))
    constants = {f"x{at}": x for at, x in enumerate(arrays) if at and data.draw(st.booleans())}
    varying = tuple(each for each in inputs if each.name not in constants)
    graph = Graph(varying, (node(name, [each.name for each in inputs], "y"),), ("y",), rows=False)
    with engine(data.draw(st.sampled_from(("auto", "reference")))):
        try:  # in the order of a file that is loaded
            said = infer(graph, {key: constant(x) for key, x in constants.items()}, graph.examples)["y"]
            found = Sessions(graph, constants).run(
                [x for x, each in zip(arrays, inputs, strict=True) if each in varying], 1
            )
        except (InvalidData, InvalidValue):
            return
    assert found[0].shape == said.shape and found[0].dtype == said.dtype
