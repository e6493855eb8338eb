"""Small networks written as image libraries write them: functional calls, sizes that are computed, many branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(c: int, k: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(c, k, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(k)
    )


class Squeeze(nn.Module):
    """Squeeze-and-excite, with the gate of MobileNetV3 where it is hard."""

    def __init__(self, channels: int, hard: bool = False) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True)
        y = self.expand(F.relu(self.reduce(y), inplace=True))
        return x * (F.hardsigmoid(y) if self.hard else y.sigmoid())


class DropPath(nn.Module):
    """Stochastic depth: nothing in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.9)


class Head(nn.Module):
    """Pooling and classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(x.size(0), -1))


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(16, 8, 1), conv_bn(8, 8, 3, groups=2), conv_bn(8, 16, 1)
        self.se = Squeeze(16)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        return F.relu(x + self.se(self.c(y)))


class Ghost(nn.Module):
    """Half of the channels by a convolution, half by a cheap one of those."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = conv_bn(16, 10, 1), conv_bn(10, 10, 3, groups=10)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.primary(x))
        b = F.relu(self.cheap(a))
        return torch.cat([a, b], dim=1)[:, :16, :, :]


class RepVGG(nn.Module):
    """Three branches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point, self.same = conv_bn(16, 16, 3), conv_bn(16, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.point(x) + self.same(x))


class Inverted(nn.Module):
    """An inverted residual."""

    def __init__(self, act: type[nn.Module] = nn.SiLU, hard: bool = False, drop: bool = False) -> None:
        super().__init__()
        self.expand, self.depth, self.project = (
            conv_bn(16, 48, 1),
            conv_bn(48, 48, 5, groups=48),
            conv_bn(48, 16, 1),
        )
        self.se, self.act, self.drop = Squeeze(48, hard), act(), DropPath() if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depth(self.act(self.expand(x))))
        return self.drop(self.project(self.se(y))) + x


class Mixed(nn.Module):
    """Depthwise convolutions of several sizes, each of a part of the channels, padded as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Conv2d(c, c, k, groups=c, bias=False) for c, k in ((6, 3), (6, 5), (4, 7))
        )
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for part, conv in zip(torch.split(x, [6, 6, 4], 1), self.parts, strict=True):
            around = conv.kernel_size[0] - 1
            found.append(conv(F.pad(part, (around // 2, around - around // 2) * 2)))
        return F.hardswish(self.bn(torch.cat(found, 1)))


class AttentionPool(nn.Module):
    """Attention of the mean over all positions."""

    def __init__(self, positions: int = 64) -> None:
        super().__init__()
        self.qkv, self.proj, self.fc = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)
        self.place = nn.Parameter(torch.randn(positions + 1, 16) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.place.unsqueeze(0)
        q, k, v = self.qkv(x).reshape(n, h * w + 1, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.fc(self.proj(y.transpose(1, 2).reshape(n, c)))


def network(blocks: Sequence[nn.Module], head: nn.Module | None = None) -> nn.Module:
    """Return a stem, these blocks and a head."""
    return nn.Sequential(conv_bn(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, head or Head(16))


STYLES = {
    "squeeze-and-excite": lambda: network([Bottleneck(), Bottleneck()]),
    "ghost": lambda: network([Ghost(), Ghost()]),
    "RepVGG": lambda: network([RepVGG(), RepVGG()]),
    "inverted residuals": lambda: network([Inverted(), Inverted(nn.ReLU6)]),
    "mixed depthwise": lambda: network([Mixed(), Mixed()]),
    "hard activations": lambda: network([Inverted(nn.Hardswish, True), nn.Hardtanh(), nn.LeakyReLU(0.1)]),
    "stochastic depth": lambda: network([Inverted(nn.GELU, drop=True), Inverted(nn.Mish, drop=True)]),
    "attention pooling": lambda: network([nn.AvgPool2d(2)], AttentionPool()),
}
