"""Small networks for the tests of the runtime: trained by nothing, but with statistics as after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchswat
from torchswat.runtime.package import About, Package
from torchswat.runtime.saving import write
from torchswat.runtime.trace import trace


def settle_(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that a network would not be the same without."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


@pytest.fixture
def small_model() -> nn.Module:
    """A residual network for 8x8 pictures of one colour, sparse at 0.8."""
    model = settle_(torchswat.models.create("resnet-digits", width=8))
    return torchswat.sparsify_(model, sparsity=0.8)


@pytest.fixture(scope="session")
def small_package() -> Package:
    """The small network, read once: `torch.export` takes its time."""
    torch.manual_seed(0)
    model = settle_(torchswat.models.create("resnet-digits", width=8))
    graph, tensors = trace(torchswat.sparsify_(model, sparsity=0.8), torch.randn(2, 1, 8, 8))
    return Package(graph, tensors, About())


@pytest.fixture
def saved(small_package: Package, tmp_path: Path) -> Callable[..., Path]:
    """Save the small network with whatever description, and return where."""

    def save(**about: Any) -> Path:
        path = tmp_path / "small.safetensors"
        about = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
        write(replace(small_package, about=About(**about)), path)
        return path

    return save


def same_up_to_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Complain where outputs differ by more than the order of additions explains."""
    scale = float(expected.detach().abs().max())
    assert float((found - expected).detach().abs().max()) <= 2e-5 * scale
