"""Residual networks: names, strides and shortcuts of the publication."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchswat import models
from torchswat.models.resnet import PaddingShortcut, make_shortcut


def test_imagenet_form_has_the_widespread_names():
    with torch.device("meta"):
        keys = models.create("resnet50", form="imagenet").state_dict().keys()
    expected = {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_mean",
        "layer4.2.bn3.bias",
        "fc.weight",
        "fc.bias",
    }
    assert expected <= keys
    # 53 convolutions, 53 batch norms of 5 entries each, and the classifier's 2.
    assert len(keys) == 53 + 53 * 5 + 2
    assert not any(key.startswith("layer1.1.downsample") for key in keys)


@pytest.mark.parametrize(
    "name, depth", [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101)]
)
@pytest.mark.parametrize("form", ["cifar", "imagenet"])
def test_name_counts_the_layers_along_the_longest_path(name, depth, form):
    with torch.device("meta"):
        model = models.create(name, form=form)
    layers = [
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in module_name
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("name, depth", [("resnet8", 8), ("resnet20", 20)])
def test_cifar_family_has_no_parameters_in_its_shortcuts(name, depth):
    with torch.device("meta"):
        model = models.create(name)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("form, size, expected", [("cifar", 32, 4), ("imagenet", 224, 7)])
def test_last_stage_sees_the_published_size(form, size, expected):
    with torch.device("meta"):
        model = models.create("resnet18", form=form)
    sizes = []
    model.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    model(torch.empty(2, 3, size, size, device="meta"))
    assert sizes == [(expected, expected)]


@settings(deadline=None)
@given(
    inputs=st.integers(1, 5),
    new_channels=st.integers(0, 5),
    stride=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
)
def test_padding_shortcut_keeps_pixels_and_adds_zeros(inputs, new_channels, stride, height, width):
    x = torch.randn(2, inputs, height, width)
    out = PaddingShortcut(inputs, inputs + new_channels, stride)(x)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            assert torch.equal(out[:, :inputs, row, column], x[:, :, row * stride, column * stride])
    assert out.shape[1] == inputs + new_channels
    assert out.shape[2:] == (-(-height // stride), -(-width // stride))
    assert not out[:, inputs:].any()


@pytest.mark.parametrize("kind", ["projection", "padding"])
def test_shortcut_is_the_identity_where_shapes_agree(kind):
    assert isinstance(make_shortcut(8, 8, 1, kind), nn.Identity)


def test_shortcut_repr_shows_its_numbers():
    assert repr(PaddingShortcut(16, 32, 2)) == "PaddingShortcut(stride=2, new_channels=16)"


def test_digits_network_learns_a_batch_by_heart():
    torch.manual_seed(0)
    model = models.create("resnet-digits")
    pictures, labels = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
