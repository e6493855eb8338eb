"""DenseNet-BC (Huang et al. 2017, "Densely Connected Convolutional Networks", CVPR).

Every layer of a dense block sees the outputs of all layers before it. BC means bottlenecks (a 1x1 convolution
before each 3x3) and compression (transitions halve the channels). Names in the state dict are the widespread
ones (``features.denseblock1.denselayer1.conv1``, ``features.transition1.norm``, ``classifier``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchswat.models.initialise import he_normal_


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 convolution to 4k channels; batch norm, ReLU, 3x3 convolution to k (the growth).

    The result is appended to the input's channels.
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.norm1(x)))
        new = self.conv2(self.relu(self.norm2(new)))
        return torch.cat([x, new], dim=1)  # (N, inputs + growth, H, W)


class DenseNet(nn.Module):
    """A DenseNet-BC.

    Parameters
    ----------
    blocks : sequence of int
        Number of layers of each dense block; ``(6, 12, 24, 16)`` is DenseNet-121.
    growth : int
        Channels that each layer adds, the publication's k. The stem has twice as many.
    stem : {"cifar", "imagenet"}
        What comes before the first block: one 3x3 convolution, or a 7x7 convolution of stride 2, batch norm,
        ReLU and a 3x3 maximum of stride 2.
    num_classes, in_channels : int
        Number of outputs and of the image's channels.

    Examples
    --------
    >>> import torch
    >>> DenseNet((2, 2), growth=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 24, 16),
        *,
        growth: int = 32,
        stem: Literal["cifar", "imagenet"] = "cifar",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "imagenet":
            layers["conv0"] = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
            layers["norm0"] = nn.BatchNorm2d(channels)
            layers["relu0"] = nn.ReLU(inplace=True)
            layers["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            layers["conv0"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for number, count in enumerate(blocks, start=1):
            layers[f"denseblock{number}"] = make_block(count, channels, growth)
            channels += count * growth
            if number < len(blocks):
                layers[f"transition{number}"] = make_transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.relu(self.features(x)))
        return self.classifier(torch.flatten(x, 1))


def make_block(count: int, channels: int, growth: int) -> nn.Sequential:
    """A dense block of `count` layers on `channels` channels."""
    return nn.Sequential(
        OrderedDict(
            (f"denselayer{index + 1}", DenseLayer(channels + index * growth, growth))
            for index in range(count)
        )
    )


def make_transition(channels: int) -> nn.Sequential:
    """Between two blocks: half the channels, half the height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, stride=2),
        )
    )
