"""Made-up images, for benchmarks and quick tests: any size, nothing to download, and learnable."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from torchswat.data import draws
from torchswat.data.augment import RandomCrop
from torchswat.data.dataset import Dataset, Images, colour_statistics
from torchswat.data.source import Source
from torchswat.errors import InvalidValue

_LARGEST = 2**36  # bytes of a split


def _read_synthetic(
    root: Path,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    train: int = 512,
    test: int = 128,
    seed: int = 0,
) -> Dataset:
    """Make noise around one random pattern a class, so that a loss that does not fall is a bug.

    Parameters
    ----------
    shape : (int, int, int), default (3, 32, 32)
        Colours, height, width.
    classes, train, test : int, default 10, 512 and 128
        Number of classes (which take turns), of training and of test images.
    seed : int, default 0
    """
    if len(shape) != 3:
        raise InvalidValue(f"synthetic data with shape = {shape}: it must be colours, height, width.")
    for name, value in {"classes": classes, "train": train, "test": test, "shape": min(shape)}.items():
        if value < 1:
            raise InvalidValue(f"synthetic data with {name} = {value}: it must be 1 or more.")

    pixels = max(classes, train, test) * math.prod(shape)
    if pixels > _LARGEST:
        raise InvalidValue(
            f"synthetic data of {pixels / 2**30:.3g} GiB a split: it may be {_LARGEST / 2**30:.0f} GiB."
        )
    generator = np.random.Generator(np.random.PCG64([seed % 2**64, draws.SYNTHETIC]))
    patterns = generator.integers(0, 128, (classes, *shape), dtype=np.uint8)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = np.arange(count) % classes
        noise = generator.integers(0, 128, (count, *shape), dtype=np.uint8)
        return torch.from_numpy(patterns[labels] + noise), torch.from_numpy(labels)

    (train_images, train_labels), (test_images, test_labels) = split(train), split(test)
    mean, std = colour_statistics(train_images)
    names = tuple(f"class {number}" for number in range(classes))
    return Dataset(
        "synthetic",
        Images(images=train_images, labels=train_labels, classes=names, mean=mean, std=std),
        Images(images=test_images, labels=test_labels, classes=names, mean=mean, std=std),
        augmentation=RandomCrop(padding=4),
    )


SYNTHETIC = Source(
    name="synthetic",
    title="Synthetic",
    summary="seeded noise around a pattern a class; shape, classes, train, test, seed are options",
    read=_read_synthetic,
)
