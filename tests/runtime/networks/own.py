"""Networks of other tasks than the classes of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .styles import conv_bn


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 32)
        self.up, self.d = nn.ConvTranspose2d(32, 16, 2, 2), conv_bn(32, 16)
        self.e, self.out = conv_bn(24, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = F.relu(self.c(F.max_pool2d(b, 2)))
        d = F.relu(self.d(torch.cat([self.up(c), b], 1)))
        d = F.interpolate(d, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.relu(self.e(torch.cat([d, a], 1)))).softmax(1)


class Detector(nn.Module):
    """A pyramid of maps with boxes and classes at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2), conv_bn(16, 32, 3, 2)
        self.sides = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in (8, 16, 32))
        self.smooth = nn.Conv2d(16, 16, 3, padding=1)
        self.boxes, self.classes = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [F.silu(self.a(x))]
        for layer in (self.b, self.c):
            maps.append(F.silu(layer(maps[-1])))
        merged = [side(each) for side, each in zip(self.sides, maps, strict=True)]
        for at in (1, 0):
            merged[at] = merged[at] + F.interpolate(merged[at + 1], size=merged[at].shape[2:], mode="nearest")
        boxes, classes = [], []
        for scale, each in zip(self.scale, merged, strict=True):
            y = F.relu(self.smooth(each))
            boxes.append((self.boxes(y) * scale).exp().flatten(2).permute(0, 2, 1))
            classes.append(self.classes(y).sigmoid().flatten(2).permute(0, 2, 1))
        return {"boxes": torch.cat(boxes, 1), "classes": torch.cat(classes, 1)}


class Audio(nn.Module):
    """Convolutions along time, with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 9, stride=4, padding=4)
        self.layers = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(3))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.first(x))
        for conv, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.leaky_relu(norm(conv(x)))
        x = F.avg_pool1d(x, 4)
        return self.fc(torch.cat([x.mean(-1), x.amax(-1)], 1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8), nn.Conv2d(8, 16, 3, 2, 1), nn.Softplus()
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(8, affine=True),
            nn.Tanh(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Siamese(nn.Module):
    """How alike two images are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8, 3, 2), nn.ReLU(), conv_bn(8, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.fc = nn.Linear(64, 8)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (F.normalize(self.fc(torch.flatten(self.body(x), 1)), dim=1) for x in (a, b))
        return (first * second).sum(1), (first - second).pow(2).sum(1).sqrt()


class Reader(nn.Module):
    """Letters along the columns of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 8, 3), nn.ReLU(), nn.MaxPool2d((2, 1)), conv_bn(8, 16, 3), nn.ReLU()
        )
        self.along = nn.Conv1d(16, 16, 3, padding=1)
        self.letters = nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x.mean(2)
        x = F.gelu(self.along(x)).permute(2, 0, 1)
        return F.log_softmax(self.letters(x), dim=-1).transpose(0, 1)


class Grouped(nn.Module):
    """A residual network with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norms[0](self.stem(x))))
        y = F.relu(self.norms[1](self.convs[0](x)))
        x = F.relu(self.norms[2](self.convs[1](y)) + x)
        return self.fc(x.mean(dim=[2, 3]))


class Mixer(nn.Module):
    """Linear layers alone, along tokens and along channels."""

    def __init__(self, tokens: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.fc(self.norms[2](x).mean(1))


OWN: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "U-Net": (UNet, ((3, 64, 64),)),
    "detector": (Detector, ((3, 64, 64),)),
    "audio": (Audio, ((1, 800),)),
    "autoencoder": (Autoencoder, ((3, 64, 64),)),
    "siamese": (Siamese, ((3, 32, 32), (3, 32, 32))),
    "reader": (Reader, ((3, 16, 48),)),
    "GroupNorm ResNet": (Grouped, ((3, 32, 32),)),
    "MLP-Mixer": (Mixer, ((3, 64, 64),)),
}
"""Each with the shapes of what it takes."""
