"""ONNX files: what is read of old and odd ones, and what is refused, by name and with a way out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchswat
from torchswat.errors import InvalidData, InvalidValue, MissingData, MissingDependency
from torchswat.runtime.network import Network
from torchswat.runtime.onnx_reader import read_onnx
from torchswat.runtime.saving import write

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT = TensorProto.FLOAT


def saved(
    folder: Path,
    nodes: list[Any],
    shape: Any,
    opset: int = 17,
    constants: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write a file with an input x and an output y."""
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "it", [x], [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **more), folder / "it.onnx")
    return folder / "it.onnx"


def agrees(file: Path, x: np.ndarray, **about: Any) -> Network:
    """Compare a file with ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    network = Network(read_onnx(file, **about))
    found = network(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return network


X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
node = helper.make_node

OLD = {
    "pads as attribute": (2, [node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 2, 2], value=1.0)]),
    "slices as attributes": (9, [node("Slice", ["x"], ["y"], starts=[1, 2], ends=[9, -1], axes=[2, 3])]),
    "bounds as attributes": (10, [node("Clip", ["x"], ["y"], min=-0.5, max=0.5)]),
    "axes of a sum": (12, [node("ReduceSum", ["x"], ["y"], axes=[1, 2], keepdims=0)]),
    "axes of an unsqueeze": (12, [node("Unsqueeze", ["x"], ["y"], axes=[0, 5])]),
    "split": (12, [node("Split", ["x"], ["y", "z"], axis=3, split=[3, 5])]),
    "softmax of all behind": (12, [node("Softmax", ["x"], ["y"], axis=1)]),
    "upsampling": (8, [node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")]),
    "dropout": (9, [node("Dropout", ["x"], ["d", "mask"]), node("Relu", ["d"], ["y"])]),
    "mean and sum": (13, [node("Mean", ["x", "x"], ["m"]), node("Sum", ["m", "x", "x"], ["y"])]),
}


@pytest.mark.parametrize("name", OLD)
def test_old_operator_sets(name: str, tmp_path: Path):
    opset, nodes = OLD[name]
    agrees(saved(tmp_path, nodes, ["n", 3, 8, 8], max(opset, 7)), X)


def test_a_branch_that_sizes_decide(tmp_path: Path):
    def branch(name: str, operation: str) -> Any:
        return helper.make_graph(
            [node(operation, ["x"], [f"{name}.y"])], name, [], [onnx.ValueInfoProto(name=f"{name}.y")]
        )

    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "two"], ["h"]),
        node("Greater", ["h", "five"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")),
    ]
    constants = {"two": np.array(2), "five": np.array(5)}
    network = agrees(saved(tmp_path, nodes, ["n", 3, 8, 8], 17, constants), X)
    assert [each.operation for each in network.package.graph.nodes] == ["Relu"]


def test_functions_of_a_file_are_taken_in(tmp_path: Path):
    double = helper.make_function(
        "own", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    file = saved(tmp_path, [node("Double", ["x"], ["y"], domain="own")], ["n", 3, 8, 8], functions=[double])
    agrees(file, X)


def test_sizes_that_are_free(tmp_path: Path):
    nodes = [node("GlobalAveragePool", ["x"], ["g"]), node("Mul", ["x", "g"], ["y"])]
    network = agrees(saved(tmp_path, nodes, ["n", 3, "h", "w"]), X)
    assert network.package.graph.inputs[0].shape == ("batch", 3, "h", "w") and network.package.graph.rows


def test_a_batch_of_one_is_free_where_rows_are_independent(tmp_path: Path):
    free = read_onnx(saved(tmp_path, [node("Flatten", ["x"], ["y"])], [1, 3, 8, 8])).graph
    assert free.inputs[0].shape == ("batch", 3, 8, 8) and free.rows
    fixed = [node("Reshape", ["x", "s"], ["y"])]
    kept = read_onnx(saved(tmp_path, fixed, [1, 3, 8, 8], 17, {"s": np.array([1, 192])})).graph
    assert kept.inputs[0].shape == (1, 3, 8, 8) and not kept.rows


def test_sizes_that_are_given(tmp_path: Path):
    nodes = [node("Reshape", ["x", "s"], ["y"])]
    file = saved(tmp_path, nodes, ["n", "c", "h", "w"], 17, {"s": np.array([-1, 11 * 13 * 5])})
    with pytest.raises(InvalidData, match="do not fill"):
        read_onnx(file)
    assert read_onnx(file, {"x": (2, 5, 11, 13)}).graph.inputs[0].example == (2, 5, 11, 13)
    with pytest.raises(InvalidValue, match="no input 'z'; there is x"):
        read_onnx(file, {"z": (1,)})


def test_zeros_are_kept_as_such(tmp_path: Path):
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    weight[:, :, 1] = 0
    file = saved(tmp_path, [node("Conv", ["x", "w"], ["y"])], ["n", 3, "h", "w"], 17, {"w": weight})
    write(read_onnx(file, classes=()), tmp_path / "it")
    assert torchswat.load(tmp_path / "it").extra_repr() == "1 operations, 144 of 216 weights"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            [node("NonZero", ["x"], ["y"], name="here")],
            "NonZero at 'here' cannot be run: how many.*cut the file",
        ),
        ([node("Det", ["x"], ["y"])], "Det at 'Det_0' cannot be run: write the model with other operators"),
        ([node("RandomUniformLike", ["x"], ["y"])], "RandomUniformLike"),
        ([node("MaxPool", ["x"], ["d", "y"], kernel_shape=[2, 2])], "none"),
        ([node("Cast", ["x"], ["y"], to=8)], "Cast to a type that is no number"),
        ([node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)], "antialias"),
    ],
)
def test_what_is_refused(nodes: list[Any], words: str, tmp_path: Path):
    file = saved(tmp_path, nodes, ["n", 3, 8, 8], 18, {"s": np.ones(4, np.float32)})
    with pytest.raises((InvalidValue, InvalidData), match=words if words != "none" else None):
        read_onnx(file)


def test_nodes_that_do_not_fit(tmp_path: Path):
    file = saved(
        tmp_path,
        [node("MatMul", ["x", "w"], ["y"], name="product")],
        ["n", 3],
        17,
        {"w": np.ones((4, 2), np.float32)},
    )
    with pytest.raises(InvalidData, match=r"it\.onnx.*'product'.*cannot be multiplied"):
        read_onnx(file)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingData):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InvalidData, match="no ONNX file"):
        read_onnx(tmp_path / "text.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"pip install \"torchswat\[export\]\""):
        read_onnx(tmp_path / "text.onnx")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from torchswat import cli

    file = saved(tmp_path, [node("Relu", ["x"], ["y"])], ["n", 3, "h", "w"])
    monkeypatch.setattr(sys, "argv", ["torchswat", "import", str(file), "--shape", "x=1,3,4,4"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and "takes x (N, 3, h, w)" in capsys.readouterr().out.replace("\n", " ")
    assert torchswat.load(tmp_path / "it.safetensors")(torch.ones(2, 3, 5, 6)).shape == (2, 3, 5, 6)
