"""Quantized networks: the kernels are numpy's whole numbers, the plain graph is met, and files are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchswat
from torchswat.data import load
from torchswat.engine.compiled import engine, native
from torchswat.errors import InvalidData, InvalidValue, MissingData
from torchswat.runtime import container
from torchswat.runtime.fours import from_fours, to_fours, weight_fours
from torchswat.runtime.fuse_quantized import fuse_quantized
from torchswat.runtime.graph import Graph, Input, node
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.package import About, Package
from torchswat.runtime.quantize import quantize, quantized
from torchswat.runtime.session import Sessions

Array = np.ndarray
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def images(n: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def residual_graph(
    channels: int, filters: int, side: int, kernel: int, stride: int, relu: bool, signed: bool, seed: int
) -> tuple[Graph, dict[str, Array]]:
    """Two convolutions, the second with a sum and perhaps a ReLU, all of numbers of 8 bits."""
    rng = np.random.default_rng(seed)
    pad, dtype = kernel // 2, np.int8 if signed else np.uint8
    low = -128 if signed else 0
    tensors: dict[str, Array] = {}

    def steps(name: str, scale: float) -> list[str]:
        tensors[f"{name}.scale"] = np.array(scale, np.float32)
        tensors[f"{name}.zero"] = np.array(low + rng.integers(0, 200), dtype)
        return [f"{name}.scale", f"{name}.zero"]

    def weight(name: str, k: int, c: int) -> str:
        values = rng.integers(-127, 128, (k, c, kernel, kernel)) * (rng.random((k, c, kernel, kernel)) < 0.3)
        tensors[name] = values.astype(np.int8)
        tensors[f"{name}.scale"] = rng.uniform(0.001, 0.01, k).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=k).astype(np.float32)
        return name

    nodes = []

    def to_bytes(name: str, scale: float) -> str:
        between = steps(name, scale)
        nodes.append(node("QuantizeLinear", [name, *between], f"{name}.q", to=np.dtype(dtype).name))
        nodes.append(node("DequantizeLinear", [f"{name}.q", *between], f"{name}.d"))
        return f"{name}.d"

    def convolve(x: str, name: str, k: int, c: int, stride: int) -> str:
        w = weight(f"{name}.w", k, c)
        nodes.append(node("DequantizeLinear", [w, f"{w}.scale"], f"{w}.d", axis=0))
        geometry = {"pads": (pad,) * 4, "strides": (stride,) * 2, "dilations": (1, 1)}
        nodes.append(node("Conv", [x, f"{w}.d", f"{w}.bias"], name, **geometry))
        return name

    first = to_bytes(convolve(to_bytes("input", 0.03), "first", filters, channels, stride), 0.05)
    second = convolve(first, "second", filters, filters, 1)
    nodes.append(node("Add", [second, first], "sum"))
    last = "sum"
    if relu:
        nodes.append(node("Relu", ["sum"], "relu"))
        last = "relu"
    to_bytes(last, 0.1)
    x = Input("input", ("batch", channels, side, side), (2, channels, side, side))
    return Graph((x,), tuple(nodes), (f"{last}.d",)), tensors


def in_steps(graph: Graph, tensors: dict[str, Array], x: Array) -> Array:
    """Run the plain operations of a graph, one after the other, with sums in float64 where they are convolutions."""
    values = {**tensors, graph.inputs[0].name: x}
    for each in graph.nodes:
        arrays = [values[name] for name in each.inputs]
        if each.operation == "Conv":
            weight, bias = (torch.from_numpy(np.asarray(a, np.float64)) for a in arrays[1:])
            maps = torch.from_numpy(arrays[0].astype(np.float64))
            stride, padding = each.settings["strides"], each.settings["pads"][:2]
            made = torch.conv2d(maps, weight, bias, stride, padding).numpy()
        else:
            made = OPERATIONS[each.operation].body(each.settings, *arrays)
        values[each.name] = np.asarray(made)
    return values[graph.outputs[0]]


graphs = st.builds(
    residual_graph,
    channels=st.integers(1, 9),
    filters=st.integers(1, 9),
    side=st.sampled_from((2, 4, 5, 8, 16)),
    kernel=st.sampled_from((1, 3)),
    stride=st.sampled_from((1, 2)),
    relu=st.booleans(),
    signed=st.booleans(),
    seed=st.integers(0, 100),
)


@few
@given(graphs, st.sampled_from((1, 3, 16, 17)), st.sampled_from((1, 2)))
def test_a_network_is_its_plain_operations(
    built: tuple[Graph, dict[str, Array]], n: int, threads: int
) -> None:
    graph, tensors = built
    x = images(n, *graph.input_shape)
    sessions = Sessions(graph, tensors)
    operations = [each.operation for each in sessions.fused.nodes]
    assert operations == ["QuantizeFours", "QuantizedConv", "QuantizedConv", "DequantizeFours"]
    found = sessions.run([x], threads)[0]
    with engine("reference"):
        assert np.array_equal(found, sessions.run([x], 1)[0])  # bitwise
    step = tensors[f"{graph.outputs[0][:-2]}.scale"]
    gap = np.abs(found - in_steps(graph, tensors, x)) / step
    assert gap.max() < 1.01 and (gap > 0.01).mean() < 0.02  # halves may be rounded the other way


@pytest.mark.parametrize("n", [1, 5, 16])
def test_every_instruction_set_answers_the_same(n: int) -> None:
    module = native()
    if module is None:
        pytest.skip("the native engine is not built here (no compiler at installation)")
    graph, tensors = residual_graph(5, 7, 8, 3, 1, relu=True, signed=False, seed=3)
    x, before = images(n, *graph.input_shape), module.isa()
    sessions = Sessions(graph, tensors)
    answers = []
    try:
        for name in module.available():
            module.force(name)
            answers.append(sessions.run([x], 1)[0])
    finally:
        module.force(before)
    assert all(np.array_equal(answers[0], other) for other in answers)


def test_the_layout_comes_back() -> None:
    x = np.random.default_rng(0).integers(0, 255, (3, 6, 2, 5)).astype(np.uint8)
    assert to_fours(x).shape == (2, 2, 5, 3, 4) and to_fours(x)[1, 0, 0, 0].tolist()[2:] == [0, 0]
    assert np.array_equal(from_fours(to_fours(x), 6), x)
    weight = np.array([-1, 2, -3, 4], np.int8).reshape(1, 4, 1, 1)
    assert weight_fours(weight).tobytes() == weight.tobytes()


class Pooled(nn.Module):
    """A convolution, a pool and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.max_pool2d(self.first(x).relu(), 3, 2, 1)).relu()


@pytest.mark.parametrize("n", [1, 16])
def test_a_pool_takes_bytes(tmp_path: Path, n: int) -> None:
    torch.manual_seed(0)
    torchswat.save(Pooled().eval(), tmp_path / "float", input_shape=(3, 8, 8))
    made = quantized(Package.read(tmp_path / "float"), [images(64, 3, 8, 8)])
    sessions, x = Sessions(made.graph, made.tensors), images(n, 3, 8, 8, seed=1)
    operations = [
        each.operation for each in sessions.fused.nodes if "Q" in each.operation or "Fours" in each.operation
    ]
    assert operations == ["QuantizeFours", "QuantizedConv", "MaxPoolFours", "QuantizedConv"]
    found = sessions.run([x], 1)[0]
    with engine("reference"):
        assert np.array_equal(found, sessions.run([x], 1)[0])
    expected = torchswat.load(tmp_path / "float")(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() < 0.03 * expected.max()


# ---- what stays in float32 ---------------------------------------------------------------------------------


def one_conv(**changes: object) -> tuple[Graph, dict[str, Array]]:
    """One quantized convolution, with other tensors or settings."""
    graph, tensors = residual_graph(4, 4, 4, 3, 1, relu=False, signed=False, seed=0)
    tensors |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    return graph, tensors


@pytest.mark.parametrize(
    "changes",
    [
        {"first.w.scale": np.full(4, np.inf, np.float32)},
        {"first.w.scale": np.full(4, 1e30, np.float32)},
        {"input.scale": np.array(0, np.float32)},
        {"first.w": np.full((4, 4, 3, 3), 1, np.uint8)},
    ],
    ids=str,
)
def test_odd_scales_stay_in_float32(changes: dict[str, Array]) -> None:
    graph, tensors = one_conv(**changes)
    fused, _ = fuse_quantized(graph, tensors)
    made = [each for each in fused.nodes if each.operation == "QuantizedConv"]
    assert [each.name for each in made] == ["sum.q"]


def test_sums_that_int32_cannot_hold_stay_in_float32() -> None:
    graph, tensors = residual_graph(1, 1, 4, 3, 1, relu=False, signed=False, seed=0)
    tensors["second.w"] = np.full((1, 8000, 3, 3), 127, np.int8)
    tensors["first.w"] = np.zeros((8000, 1, 3, 3), np.int8)
    for name in ("first.w.scale", "first.w.bias"):
        tensors[name] = np.ones(8000, np.float32)
    nodes = [each for each in graph.nodes if each.operation != "Add"]
    nodes = [node("Relu", ["second"], "sum") if each.inputs[0] == "sum" else each for each in nodes][:-2]
    graph = Graph(graph.inputs, (*nodes, node("Relu", ["second"], "sum")), ("sum",))
    fused, _ = fuse_quantized(graph, tensors)
    assert [each.name for each in fused.nodes if each.operation == "QuantizedConv"] == ["first.q"]


def test_bytes_that_others_read_stay_as_they_are() -> None:
    graph, tensors = residual_graph(4, 4, 4, 3, 1, relu=False, signed=False, seed=0)
    graph = Graph(graph.inputs, graph.nodes, (*graph.outputs, "first.q"))
    sessions, x = Sessions(graph, tensors), images(2, 4, 4, 4)
    found = sessions.run([x], 1)
    assert found[1].dtype == np.uint8 and found[1].shape == (2, 4, 4, 4)
    assert "QuantizeLinear" in {each.operation for each in sessions.fused.nodes}


# ---- quantizing a network ----------------------------------------------------------------------------------


def test_a_file_that_answers_alike(saved: Callable[..., Path], tmp_path: Path) -> None:
    output, x = tmp_path / "int8.safetensors", images(40, 1, 8, 8)
    quantize(saved(classes=list("0123456789")), output, x)
    package = Package.read(output)
    assert package.about.provenance["quantized"] == {"convolutions": 6, "images": 40}
    assert package.about.classes == tuple("0123456789")
    assert {t.dtype for name, t in package.tensors.items() if name.endswith(".int8")} == {np.dtype(np.int8)}
    found = torchswat.load(output)(torch.from_numpy(x))
    expected = torchswat.load(saved())(torch.from_numpy(x))
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_several_batches_are_one(small_package: Package) -> None:
    x = images(20, 1, 8, 8)
    whole, parts = (quantized(small_package, each) for each in ([x], [x[:7], x[7:]]))
    for (
        name,
        tensor,
    ) in whole.tensors.items():  # activations differ by rounding, so a range may be the next one
        assert np.allclose(tensor, parts.tensors[name], rtol=0.05, atol=10 * name.endswith(".zero"))


def test_zeros_stay_zeros(small_package: Package) -> None:
    made = quantized(small_package, [images(4, 1, 8, 8)])
    for name, tensor in small_package.tensors.items():
        if f"{name}.int8" in made.tensors:
            assert not made.tensors[f"{name}.int8"][tensor == 0].any()


def test_accuracy_of_trained_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    digits = load("digits")
    x, y = digits.train.images.float(), digits.train.labels  # type: ignore[attr-defined]
    test_x, test_y = digits.test.images.float(), digits.test.labels  # type: ignore[attr-defined]
    mean, std = x.mean(), x.std()
    x, test_x = (x - mean) / std, (test_x - mean) / std
    torch.manual_seed(0)
    model = torchswat.sparsify_(torchswat.models.create("resnet-digits", width=16), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(8):
        for at in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    torchswat.save(model.eval(), tmp_path / "float", input_shape=tuple(x.shape[1:]))
    quantize(tmp_path / "float", tmp_path / "int8", x[:256].numpy())
    right = [
        float((torchswat.load(tmp_path / name)(test_x).argmax(1) == test_y).float().mean())
        for name in ("float", "int8")
    ]
    assert right[0] > 0.9 and right[1] > right[0] - 0.01


def test_what_cannot_be_quantized(small_package: Package, saved: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="no image"):
        quantized(small_package, [])
    with pytest.raises(InvalidValue, match="finite float32"):
        quantized(small_package, [np.zeros((1, 1, 8, 8))])
    with pytest.raises(InvalidValue, match="finite float32"):
        quantized(small_package, [np.full((1, 1, 8, 8), np.nan, np.float32)])
    with pytest.raises(InvalidValue, match="shape"):
        quantized(small_package, [images(1, 2, 8, 8)])
    flat = Graph((Input("input", ("batch", 4), (1, 4)),), (node("Relu", ["input"], "output"),), ("output",))
    with pytest.raises(InvalidValue, match="no convolution"):
        quantized(Package(flat, {}, About()), [images(1, 4)])
    two = Graph((*flat.inputs, Input("other", (1,), (1,))), flat.nodes, flat.outputs)
    with pytest.raises(InvalidValue, match="takes 2 inputs"):
        quantized(Package(two, {}, About()), [images(1, 4)])
    with pytest.raises(MissingData):
        quantize(tmp_path / "nothing", tmp_path / "out", images(1, 1, 8, 8))
    again = quantized(small_package, [images(1, 1, 8, 8)])
    with pytest.raises(InvalidValue, match="no convolution"):
        quantized(again, [images(1, 1, 8, 8)])


@few
@given(st.data())
def test_damaged_weights_load_or_are_refused(small_package: Package, data: st.DataObject) -> None:
    package = quantized(small_package, [images(2, 1, 8, 8)])
    arrays, metadata = container.from_bytes(package.to_bytes(), "it")
    name = data.draw(st.sampled_from([each for each in arrays if ".int8/" in each or ".zero/" in each]))
    array = arrays[name].copy()
    kind = data.draw(st.sampled_from(("dtype", "shorter", "longer", "shape", "value")))
    if kind == "dtype":
        other = data.draw(st.sampled_from((np.float32, np.uint16, np.int32, np.int8, np.uint8)))
        array = array.astype(other)
    elif kind == "shorter":
        array = array.reshape(-1)[:-1]
    elif kind == "longer":
        array = np.concatenate([array.reshape(-1), array.reshape(-1)[:1]])
    elif kind == "shape":
        array = array.reshape(1, *array.shape)
    elif array.size:
        flat = array.reshape(-1)
        flat[data.draw(st.integers(0, flat.size - 1))] ^= data.draw(st.integers(1, 127))
    with pytest.raises(InvalidData):
        if np.array_equal(array, arrays[name]) and array.dtype == arrays[name].dtype:
            raise InvalidData("nothing has changed")
        Package.checked({**arrays, name: array}, metadata)
