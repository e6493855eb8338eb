"""Graphs read off torch modules: equal to the module, and whatever cannot be read refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchswat
from torchswat.errors import InvalidValue
from torchswat.runtime.plain import run
from torchswat.runtime.trace import pruned, trace

from .conftest import same_up_to_rounding, settle_

SMALL = {"resnet18": {"width": 4}, "resnet50": {"width": 4}, "resnet20": {}, "vgg16": {}}


@pytest.mark.parametrize("name", [*SMALL, "densenet121", "wrn28-10"])
def test_the_networks_of_the_registry(name: str):
    model = settle_(torchswat.models.create(name, **SMALL.get(name, {})))
    torchswat.sparsify_(model, sparsity=0.8, skip=("first",))
    graph, tensors = trace(model, (3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    expected = pruned(model)(x)
    same_up_to_rounding(run(graph, {k: torch.from_numpy(v) for k, v in tensors.items()}, x), expected)
    operations = [node.operation for node in graph.nodes]
    if name.startswith(("resnet", "vgg")):  # every batch norm, ReLU and sum found its convolution
        assert not {"affine", "relu"} & set(operations)
        assert ("add" in operations) == (name == "never")


def test_the_model_is_left_alone(small_model: nn.Module):
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    small_model.train()
    trace(small_model, (1, 8, 8))
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
    graph, tensors = trace(model, (3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    same_up_to_rounding(run(graph, {k: torch.from_numpy(v) for k, v in tensors.items()}, x), model(x))
    assert sum(node.operation == "conv2d" for node in graph.nodes) == 2


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True) + x


class Hidden(nn.Module):
    """Its flow depends on the number of pictures, which a trace does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) if self.calls < 2 else self.conv(self.conv(x))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softplus()), "'1' is a Softplus"),
        (nn.Conv2d(3, 3, 3, groups=3), "groups"),
        (nn.Conv2d(3, 3, 3, padding="same"), "must be given in numbers"),
        (nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
        (nn.MaxPool2d((2, 3)), "same number in height and width"),
        (nn.Flatten(0), "all but the batch"),
        (Branches(), "may not depend on data"),
        (InPlace(), "changes what others read"),
        (Hidden(), "computes something else"),
    ],
)
def test_what_is_refused(model: nn.Module, words: str):
    holder = (
        nn.Sequential(model)
        if not list(model.children()) and not isinstance(model, (Branches, InPlace))
        else model
    )
    with pytest.raises(InvalidValue, match=words):
        trace(holder, (3, 8, 8))
