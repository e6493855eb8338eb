"""The whitened network: what it starts as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat import fuse_, models, sparsify_
from torchswat.convert import sparse_layers
from torchswat.models.airbench import WHITENING_EPS, Airbench


def correlated_images(seed: int, channels: int = 3) -> torch.Tensor:
    """Smooth noise: neighbours resemble each other, as in photographs."""
    noise = torch.randn(64, channels, 18, 18, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, stride=1) * torch.linspace(0.5, 3, channels)[:, None, None]


@given(st.integers(0, 99), st.sampled_from([1, 3]))
def test_whitened_patches_have_the_identity_as_second_moments(seed, channels):
    images = correlated_images(seed, channels)
    model = Airbench(width=4, in_channels=channels)
    model.initialise_from_(images)
    outputs = model.whiten(images).detach().transpose(0, 1).flatten(1).double()
    half, moments = len(outputs) // 2, outputs @ outputs.T / outputs.shape[1]
    # Each direction shrinks by variance / (variance + eps), which differs from 1 where the variance is small.
    patches = nn.functional.unfold(images, 2).transpose(0, 1).flatten(1).double()
    variances = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1])
    expected = torch.diag(variances / (variances + WHITENING_EPS))
    torch.testing.assert_close(moments[:half, :half], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs[half:], -outputs[:half])


def test_filters_are_fixed_and_saved():
    model, other = Airbench(width=4), Airbench(width=4)
    model.initialise_from_(correlated_images(0))
    assert not model.whiten.weight.requires_grad and model.whiten.bias.requires_grad
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.whiten.weight, model.whiten.weight)


def test_convolutions_begin_by_handing_their_input_on():
    model = Airbench(width=16)
    convolution = model.group1.conv2
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(convolution(x), x)
    x = torch.randn(2, 24, 6, 6)
    torch.testing.assert_close(model.group1.conv1(x), x[:, :16])  # fewer outputs than inputs
    x = torch.randn(2, 16, 6, 6)
    outputs = model.group2.conv1(x)
    torch.testing.assert_close(outputs[:, :16], x)
    assert outputs[:, 16:].std() > 0.1


def test_scores_begin_small():
    torch.manual_seed(0)
    model = models.create("airbench")
    assert model.head.weight.std().item() == pytest.approx(1, rel=1e-5)
    model.initialise_from_(correlated_images(0))
    assert model(torch.randn(16, 3, 32, 32)).abs().max() < 1


def test_batch_norms_learn_a_shift_alone():
    norms = [module for module in Airbench(width=4).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 6
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.weight.requires_grad
        assert norm.bias.requires_grad and norm.momentum == pytest.approx(0.4)


def test_six_convolutions_are_sparse_and_fusing_changes_no_score():
    torch.manual_seed(0)
    model = Airbench(width=8)
    sparsify_(model, sparsity=0.8, skip=("first", "last"))
    names = [f"group{group}.conv{number}" for group in (1, 2, 3) for number in (1, 2)]
    assert [name for name, _ in sparse_layers(model)] == names
    images = torch.randn(4, 3, 32, 32)
    model.eval()
    before = model(images)
    fuse_(model)
    torch.testing.assert_close(model(images), before)
