"""Residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition", CVPR).

One class holds them all: a stem, stages of blocks, a global average and a linear classifier. Each stage but
the first halves the height and width and doubles the channels. Names of parameters in the state dict are the
widespread ones (``conv1``, ``layer1.0.bn2``, ``layer2.0.downsample.0``, ``fc``), so published weights of the
ImageNet form load.

Where the block of three convolutions halves the image, its 3x3 convolution carries the stride and not the
first 1x1 as in the publication: so do most published weights, and no parameter differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchswat.models.initialise import he_normal_

Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["projection", "padding"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (figure 5, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut (figure 5, right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


class PaddingShortcut(nn.Module):
    """The shortcut without parameters: every second pixel, and new channels that are zero (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels: int = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def make_shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    """The way around a block: the identity where shapes agree, else a projection or padding."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if kind == "padding":
        return PaddingShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network.

    Parameters
    ----------
    block : type
        `BasicBlock` or `Bottleneck`.
    blocks : sequence of int
        Number of blocks of each stage: ``(2, 2, 2, 2)`` for ResNet-18, ``(n, n, n)`` for the CIFAR family of
        6n+2 layers of section 4.2.
    stem : {"cifar", "imagenet"}
        What comes before the first stage: one 3x3 convolution, or a 7x7 convolution of stride 2 and a 3x3
        maximum of stride 2.
    width : int
        Channels of the first stage (before the expansion of a `Bottleneck`).
    shortcut : {"projection", "padding"}
        How a shortcut changes shape: a 1x1 convolution with batch norm (option B) or `PaddingShortcut`.
    num_classes, in_channels : int
        Number of outputs and of the image's channels.

    Examples
    --------
    >>> import torch
    >>> model = ResNet(BasicBlock, (1, 1), width=8, in_channels=1)
    >>> model(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        *,
        stem: Stem = "cifar",
        width: int = 64,
        shortcut: Shortcut = "projection",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        channels = width
        for stage, count in enumerate(blocks):
            stage_width = width * 2**stage
            members = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                members.append(block(channels, stage_width, stride, shortcut))
                channels = block.expansion * stage_width
            self.add_module(self.stages[stage], nn.Sequential(*members))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
