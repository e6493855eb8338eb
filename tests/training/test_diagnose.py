"""The first layer to blame for a number that is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from torchswat.convert import sparsify_
from torchswat.training.diagnose import first_not_finite, is_finite


class Explode(nn.Module):
    """Multiplies by a constant on the way there, and its gradient by another on the way back."""

    def __init__(self, forward: float = 1.0, backward: float = 1.0) -> None:
        super().__init__()
        self.factors = forward, backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        forward, backward = self.factors
        y = x * forward
        y.register_hook(lambda gradient: gradient * backward)
        return y


def network(*explosion: Explode) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), *explosion, nn.Linear(4, 3))


@pytest.mark.parametrize(
    "model, expected",
    [
        (network(Explode(forward=float("inf"))), "the output of 2"),
        (network(Explode(backward=float("nan"))), "the gradient of the output of 2"),
        (network(Explode(backward=1e30)), "the norm of all gradients, which overflows,"),
    ],
)
def test_it_is_found(model, expected):
    batch = torch.randn(2, 4), torch.tensor([0, 1])
    assert first_not_finite(model, *batch, cross_entropy) == expected


def test_a_step_that_is_finite_when_repeated():
    batch = torch.randn(2, 4), torch.tensor([0, 1])
    assert first_not_finite(network(), *batch, cross_entropy).startswith("nothing when the step was repeated")


def test_images_parameters_and_loss():
    batch = torch.randn(2, 4), torch.tensor([0, 1])
    assert first_not_finite(network(), batch[0] / 0, batch[1], cross_entropy) == "the images of the batch"
    model = network()
    model[1].weight.data[0, 0] = float("nan")
    assert first_not_finite(model, *batch, cross_entropy) == "the parameter 1.weight"
    huge = lambda outputs, labels: (outputs * 3e38).exp().sum()  # noqa: E731
    assert first_not_finite(network(), *batch, huge) == "the loss"


class Between(nn.Module):
    """What happens between two layers belongs to neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) * float("nan"))


def test_a_sparse_layer_that_refuses_names_itself():
    model = sparsify_(Between(), "swat", 0.5)
    found = first_not_finite(model, torch.randn(2, 4), torch.tensor([0, 1]), cross_entropy)
    assert "layer 'second'" in found


def test_no_hooks_are_left():
    model = network()
    first_not_finite(model, torch.randn(2, 4), torch.tensor([0, 1]), cross_entropy)
    assert not any(module._forward_hooks for module in model.modules())


def test_is_finite():
    assert is_finite([]) and is_finite([torch.ones(2), torch.zeros(1)])
    assert not is_finite([torch.ones(2), torch.tensor([float("nan")])])
    assert not is_finite([torch.tensor([float("-inf")])])
