"""Networks as users write them or take them from Hugging Face; none of them knows of this package."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from torchswat.errors import MissingDependency


def mlp() -> nn.Module:
    """Return a perceptron of 784-300-100-10 units."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cnn() -> nn.Module:
    """Return a network of three convolutions with 32, 64 and 64 channels for 28x28 images."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    blocks = [*block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 64)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class UserBlock(nn.Module):
    """The basic block of a ResNet in the style of torchvision: one ReLU module, called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class UserResNet18(nn.Module):
    """ResNet-18 for 32x32 images, written without this package's models."""

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(UserBlock(inputs, outputs, 1 + (stage > 0)), UserBlock(outputs, outputs, 1))
                for stage, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layers(x))
        return self.fc(x.flatten(1))


def hugging_face(family: str, **settings: Any) -> nn.Module:
    """Return ``{family}ForImageClassification`` of transformers with random weights; nothing is downloaded.

    Raises
    ------
    MissingDependency
        Where transformers is not installed.
    """
    try:
        transformers = import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingDependency(
            f"the network {family} comes from transformers, which is not installed: "
            'pip install "torchswat[transformers]".'
        ) from None
    config = getattr(transformers, f"{family}Config")(num_labels=10, **settings)
    return getattr(transformers, f"{family}ForImageClassification")(config)
