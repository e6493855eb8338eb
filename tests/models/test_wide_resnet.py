"""Wide residual networks: depth, width and pre-activation."""

from __future__ import annotations

import torch
from torch import nn

from torchswat import models
from torchswat.models.wide_resnet import WideBlock, WideResNet


def test_name_counts_depth_and_width():
    with torch.device("meta"):
        model = models.create("wrn28-10")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # WRN counts the three 1x1 convolutions of the shortcuts and not the classifier: 6n + 4 = 28 with n = 4.
    assert len(convolutions) == 28
    assert [model.block1[0].conv1.out_channels, model.fc.in_features] == [160, 640]


def test_a_block_of_one_shape_passes_its_input_around_untouched():
    block = WideBlock(4, 4, stride=1)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)


def test_a_block_that_changes_shape_sends_the_activated_input_around():
    block = WideBlock(4, 6, stride=2)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    expected = block.shortcut(torch.relu(nn.functional.batch_norm(x, None, None, training=True)))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def test_one_step_reaches_every_parameter():
    torch.manual_seed(0)
    model = WideResNet(depth=10, widen=1)
    model(torch.randn(4, 3, 16, 16)).logsumexp(dim=1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
