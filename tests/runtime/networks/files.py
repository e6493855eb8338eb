"""ONNX files: of packages that are installed, of torch's exporters, and changed by the tools of ONNX."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ..conftest import settle_
from .own import Mixer
from .styles import STYLES


def shipped(name: str) -> Callable[[Path], Path]:
    """A file that the package onnx has for its own tests."""
    return lambda folder: Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"{name}.onnx"


class Old(nn.Module):
    """What exporters wrote differently in operator set 11: padding, resizing, softmax, squeezing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.relu6(self.bn(self.conv(x)))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        a, b = torch.split(x, 4, dim=1)
        x = torch.cat([a * b.softmax(1), b], 1).unsqueeze(0).squeeze(0)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def exported(model: nn.Module, path: Path, opset: int) -> Path:
    """Write a model by torch's exporter for this operator set."""
    dynamo = opset >= 18
    axes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            settle_(model),
            (torch.randn(2, 3, 64, 64),),
            str(path),
            input_names=["x"],
            opset_version=opset,
            dynamo=dynamo,
            verbose=False,
            **axes,  # type: ignore[arg-type]
        )
    return path


def of_torch(model: Callable[[], nn.Module], opset: int) -> Callable[[Path], Path]:
    """A file of one of torch's exporters."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        return exported(model(), folder / "network.onnx", opset)

    return make


def quantized(in_place: bool) -> Callable[[Path], Path]:
    """A network of 8 bits: as quantize and dequantize nodes, or as quantized operators."""

    def make(folder: Path) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Images(CalibrationDataReader):
            def __init__(self) -> None:
                draw = np.random.default_rng(0)
                self.rest = [draw.standard_normal((2, 3, 64, 64)).astype(np.float32) for _ in range(4)]

            def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
                return {"x": self.rest.pop()} if self.rest else None

        source = of_torch(STYLES["RepVGG"], 18)(folder)
        form = QuantFormat.QOperator if in_place else QuantFormat.QDQ
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"per_channel": True, "op_types_to_quantize": ["Conv"], **kinds}
            quantize_static(source, folder / "quantized.onnx", Images(), quant_format=form, **options)
        return folder / "quantized.onnx"

    return make


def with_sparse_initializers(folder: Path) -> Path:
    """A file whose weights, of which nine in ten are zero, are sparse initializers."""
    draw = np.random.default_rng(0)
    weights = {"a": draw.standard_normal((16, 3, 3, 3)), "b": draw.standard_normal((5, 16))}
    weights = {name: (w * (draw.random(w.shape) < 0.3)).astype(np.float32) for name, w in weights.items()}
    sparse = []
    for name, weight in weights.items():
        flat = weight.reshape(-1)
        places = np.flatnonzero(flat)
        values = numpy_helper.from_array(flat[places], name)
        indices = numpy_helper.from_array(places.astype(np.int64), f"{name}.places")
        sparse.append(helper.make_sparse_tensor(values, indices, list(weight.shape)))
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(nodes, "sparse", [x], [y], sparse_initializer=sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "sparse.onnx")
    return folder / "sparse.onnx"


FILES: dict[str, Callable[[Path], Path]] = {
    "DenseNet-121, shipped": shipped("light_densenet121"),
    "SqueezeNet, shipped": shipped("light_squeezenet"),
    "ShuffleNet, shipped": shipped("light_shufflenet"),
    "operator set 11": of_torch(Old, 11),
    "operator set 20": of_torch(Mixer, 20),
    "quantize and dequantize": quantized(in_place=False),
    "quantized operators": quantized(in_place=True),
    "sparse initializers": with_sparse_initializers,
}
