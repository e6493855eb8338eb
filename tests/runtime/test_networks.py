"""Whole networks: each is read, saved and loaded, and answers as torch or ONNX Runtime does; rows do not mix."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchswat
from torchswat.runtime.network import Network
from torchswat.runtime.saving import write
from torchswat.runtime.trace import flat_outputs

from .conftest import settle_
from .networks import families, own, styles

CLOSE = 1e-4  # of the largest output
SAME_ROWS = 1e-5  # of the largest output: kernels for few and for many images add up in other orders
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def some(names: Any, *quick: str) -> list[Any]:
    """Return names, those that are not quick for who has time."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def close(found: Any, expected: Any) -> None:
    """Complain where an output differs by more than rounding explains."""
    found, expected = flat_outputs(found), flat_outputs(expected)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max()) <= CLOSE * max(1e-3, float(theirs.abs().max()))


@torch.no_grad()
def agrees(model: nn.Module, shapes: tuple[tuple[int, ...], ...], path: Path) -> Network:
    """Prune a model, save and load it, and compare it with itself."""
    torch.manual_seed(0)
    for layer in settle_(model).modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and isinstance(weight, Tensor):
            weight.mul_(torch.rand_like(weight) < 0.3)
    torchswat.save(model, path, tuple(torch.randn(2, *shape) for shape in shapes))
    network = torchswat.load(path)
    for images in (1, 3):
        inputs = [torch.randn(images, *shape) for shape in shapes]
        close(network(*inputs), model(*inputs))
    if network.package.graph.rows:
        rows_stand_alone(network, [torch.randn(19, *shape) for shape in shapes])
    return network


def rows_stand_alone(network: nn.Module, inputs: list[Tensor]) -> None:
    """Complain where an image's answer depends on the images beside it."""
    whole = flat_outputs(network(*inputs))
    for part in (slice(0, 1), slice(1, 4), slice(3, 19)):
        alone = flat_outputs(network(*(x[part] for x in inputs)))
        for rows, mine in zip(whole, alone, strict=True):
            gap = float((rows[part] - mine).abs().max())
            assert gap <= SAME_ROWS * max(1e-3, float(rows.abs().max())), f"{part}: {gap}"


def test_rows_that_depend_on_the_batch_are_noticed():
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(AssertionError, match="slice"):
        rows_stand_alone(Centred(), [torch.randn(19, 3)])


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="transformers is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", some(families.SETTINGS, "ViT", "ConvNeXt"))
def test_families(name: str, tmp_path: Path):
    torch.manual_seed(0)
    agrees(families.maker(name)(), ((3, 64, 64),), tmp_path / "it")


@pytest.mark.parametrize("name", some(styles.STYLES, "squeeze-and-excite", "hard activations"))
def test_styles(name: str, tmp_path: Path):
    torch.manual_seed(0)
    shape = (3, 64, 64)
    network = agrees(styles.STYLES[name](), (shape,), tmp_path / "it")
    assert network.package.graph.rows


@pytest.mark.parametrize("name", some(own.OWN, "detector", "audio", "siamese", "autoencoder"))
def test_own(name: str, tmp_path: Path):
    torch.manual_seed(0)
    kind, shapes = own.OWN[name]
    agrees(kind(), shapes, tmp_path / "it")


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not all installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "DenseNet-121, shipped",
        "SqueezeNet, shipped",
        "ShuffleNet, shipped",
        *some(
            ["operator set 11", "operator set 20", "quantize and dequantize", "quantized operators"],
            "operator set 11",
        ),
        "sparse initializers",
    ],
)
def test_files(name: str, tmp_path: Path):
    import onnxruntime

    from torchswat.runtime.onnx_reader import read_onnx

    from .networks.files import FILES

    file = FILES[name](tmp_path)
    write(read_onnx(file), tmp_path / "it")
    network = torchswat.load(tmp_path / "it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (source,) = network.package.graph.inputs
    draw = np.random.default_rng(0)
    for images in (1, 3):
        x = draw.standard_normal((images, *source.example[1:])).astype(np.float32)
        parts = [x] if isinstance(session.get_inputs()[0].shape[0], str) else np.split(x, images)
        expected = [session.run(None, {session.get_inputs()[0].name: part}) for part in parts]
        if not source.is_batch and images > 1:
            continue
        close(
            network(torch.from_numpy(x)),
            [torch.from_numpy(np.concatenate(e)) for e in zip(*expected, strict=True)],
        )
