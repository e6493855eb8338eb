"""VGG-16 with batch norm (Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", ICLR).

Configuration D of the publication with batch norm between each convolution and its ReLU. The convolutions
keep their biases, although batch norm makes them idle: the published parameter counts and weights have them.
Names in the state dict are the widespread ones (``features.0``, ``classifier.6``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from torchswat.models.initialise import he_normal_

# Channels of the convolutions of each stage; a 2x2 maximum closes a stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """VGG-16 with batch norm.

    Parameters
    ----------
    form : {"cifar", "imagenet"}
        The classifier: a single linear layer on the global average, or the publication's three linear layers
        with dropout on a 7x7 average.
    num_classes, in_channels : int
        Number of outputs and of the image's channels.

    Examples
    --------
    >>> import torch
    >>> VGG(num_classes=100)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """

    def __init__(
        self,
        form: Literal["cifar", "imagenet"] = "cifar",
        *,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.features = make_features(in_channels)
        if form == "imagenet":
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, num_classes),
            )
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(512, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def make_features(in_channels: int) -> nn.Sequential:
    """The thirteen convolutions and five maxima, which divide height and width by 32."""
    layers: list[nn.Module] = []
    for stage in STAGES:
        for channels in stage:
            layers += [
                nn.Conv2d(in_channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = channels
        # Rounding up changes nothing at 32 or 224 pixels and lets images of 28 (or 8) pixels through.
        layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
    return nn.Sequential(*layers)
