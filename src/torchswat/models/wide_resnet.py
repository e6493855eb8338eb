"""Wide residual networks (Zagoruyko and Komodakis 2016, "Wide Residual Networks", BMVC).

WRN-d-k has d = 6n + 4 convolutions in three stages of n blocks, k times as wide as a thin residual network.
Batch norm and ReLU stand before each convolution (pre-activation); where a block changes shape, its shortcut
is a 1x1 convolution of the activated input, without batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchswat.models.initialise import he_normal_


class WideBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut around them (figure 1c)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = None if same_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(activated)
        out = self.relu(self.bn2(self.conv1(activated)))
        return self.conv2(out) + around


class WideResNet(nn.Module):
    """A wide residual network for images of about 32x32 pixels.

    Parameters
    ----------
    depth : int
        Number of convolutions along the longest path, 6n + 4.
    widen : int
        The factor k: the stages have 16k, 32k and 64k channels.
    num_classes, in_channels : int
        Number of outputs and of the image's channels.

    Examples
    --------
    >>> import torch
    >>> WideResNet(depth=10, widen=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, depth: int = 28, widen: int = 10, *, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = self._stage(count, 16, 16 * widen, stride=1)
        self.block2 = self._stage(count, 16 * widen, 32 * widen, stride=2)
        self.block3 = self._stage(count, 32 * widen, 64 * widen, stride=2)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * widen, num_classes)
        he_normal_(self)

    @staticmethod
    def _stage(count: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = WideBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.avgpool(self.relu(self.bn(x)))
        return self.fc(torch.flatten(x, 1))
