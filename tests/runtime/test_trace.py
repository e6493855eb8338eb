"""Graphs read off torch modules: equal to the module, and whatever cannot be read refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchswat
from torchswat.errors import InvalidValue
from torchswat.runtime.fuse import fuse
from torchswat.runtime.graph import Graph
from torchswat.runtime.session import Sessions
from torchswat.runtime.trace import pruned, trace

from .conftest import same_up_to_rounding, settle_

SMALL = {"resnet18": {"width": 4}, "resnet50": {"width": 4}, "resnet20": {}, "vgg16": {}}


def run(graph: Graph, tensors: dict[str, np.ndarray], x: Tensor) -> Tensor:
    """Return what a graph makes of images."""
    return torch.from_numpy(Sessions(graph, tensors).run([x.numpy()], 1)[0])


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vgg16", "densenet121", "wrn28-10")
]


@pytest.mark.parametrize("name", ["resnet20", "resnet50", *SLOW])
def test_the_networks_of_the_registry(name: str):
    model = settle_(torchswat.models.create(name, **SMALL.get(name, {})))
    torchswat.sparsify_(model, sparsity=0.8, skip=("first",))
    graph, tensors = trace(model, torch.randn(2, 3, 32, 32))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        same_up_to_rounding(run(graph, tensors, x), pruned(model)(x))
    if name.startswith(("resnet", "vgg")):  # every batch norm, ReLU and sum found its convolution
        assert "BatchNormalization" not in {node.operation for node in graph.nodes}
        fused = {node.operation for node in fuse(graph, tensors)[0].nodes}
        assert not {"Relu", "Add", "FusedAffine"} & fused


def test_the_model_is_left_alone(small_model: nn.Module):
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    small_model.train()
    trace(small_model, torch.randn(2, 1, 8, 8))
    assert small_model.training
    assert type(small_model.conv1) is not nn.Conv2d
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


class Shared(nn.Module):
    """Values with several readers: nothing here may be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        return torch.cat([y + z, self.relu(z), torch.relu(y), F.relu(self.conv(z))], 1).flatten(1)


def test_shared_values_are_not_fused():
    model = settle_(Shared())
    graph, tensors = trace(model, torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    same_up_to_rounding(run(graph, tensors, x), model(x))
    assert sum(node.operation == "Conv" for node in graph.nodes) == 2


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = F.relu(y, inplace=True)
        return y + z + x


class Sizes(nn.Module):
    """Views with sizes that are computed, a mean over positions, and an image size that is free."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.view(n, c, h * w).mean(2).view(x.size(0), -1)
        return F.adaptive_avg_pool2d(x, 2).flatten(1) + y.repeat(1, 4) * (h // 2)


@pytest.mark.parametrize(
    "model", [InPlace(), Sizes(), nn.Conv2d(3, 6, 3, groups=3, padding="same"), nn.MaxPool2d((2, 3))]
)
def test_whatever_its_style(model: nn.Module):
    graph, tensors = trace(model, torch.randn(2, 3, 8, 12))
    assert graph.rows and graph.inputs[0].shape == ("batch", 3, "height", "width")
    for shape in ((1, 3, 8, 12), (5, 3, 11, 20)):
        x = torch.randn(shape)
        with torch.no_grad():
            same_up_to_rounding(run(graph, tensors, x), model(x))


class Hidden(nn.Module):
    """Its flow depends on whether it is exported, which a trace does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if torch.compiler.is_exporting() else self.conv(self.conv(x))


class Mixed(nn.Module):
    """Its rows depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_rows_that_depend_on_each_other_stay_together():
    graph, tensors = trace(Mixed(), torch.randn(4, 3, 2, 2))
    assert not graph.rows
    x = torch.randn(300, 3, 2, 2)
    same_up_to_rounding(run(graph, tensors, x), Mixed()(x))


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).abs()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Spectrum(), "fft.*cannot be saved"),
        (Choice(), "depend.* on data"),
        (Branches(), "may not depend on data"),
        (Hidden(), "computes something else"),
    ],
)
def test_what_is_refused(model: nn.Module, words: str):
    with pytest.raises(InvalidValue, match=words):
        trace(model, torch.randn(2, 3, 8, 8))


def test_a_refusal_says_where():
    with pytest.raises(InvalidValue, match=r"at '1'.*torch.fft.fft"):
        trace(nn.Sequential(nn.ReLU(), Spectrum()), torch.randn(2, 3, 8, 8))
