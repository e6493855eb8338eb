"""He-normal initialisation has the standard deviation of the publication."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchswat.models.initialise import he_normal_


@pytest.mark.parametrize("inputs, outputs, size", [(16, 64, 3), (64, 16, 3), (32, 128, 1)])
def test_convolutions_have_the_published_deviation(inputs, outputs, size):
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, outputs, size)
    he_normal_(convolution)
    expected = math.sqrt(2 / (outputs * size**2))
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert convolution.weight.mean().item() == pytest.approx(0, abs=0.05 * expected)
    assert convolution.bias is not None and not convolution.bias.any()


def test_batch_norm_starts_as_the_identity():
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.fill_(3)
        norm.bias.fill_(3)
    he_normal_(norm)
    assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_linear_layers_keep_their_weights_and_lose_their_biases():
    linear = nn.Linear(5, 4)
    before = linear.weight.detach().clone()
    he_normal_(linear)
    assert torch.equal(linear.weight, before)
    assert not linear.bias.any()


def test_layers_without_bias_and_other_layers_are_let_through():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.GroupNorm(1, 2), nn.Linear(2, 2, bias=False))
    before = model[1].weight.detach().clone()
    he_normal_(model)
    assert torch.equal(model[1].weight, before)
