"""What a data set is to the rest of the package: two splits of images with labels.

`Images` keeps small images in memory; `Pictures` keeps the paths of large ones and decodes them when a
batch asks for them. `Batches` treats both alike.
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchswat.data import draws
from torchswat.data.augment import Augmentation, Box, CentreCrop, RandomCrop
from torchswat.data.picture import decode
from torchswat.errors import InvalidValue

AnySplit = TypeVar("AnySplit", bound="Split")
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Split(abc.ABC):
    """The training or the test part of a data set.

    Attributes
    ----------
    labels : Tensor of int64, shape (N,)
        Class numbers, 0 to ``len(classes) - 1``.
    classes : tuple of str
        Class names, in the order of their numbers.
    mean, std : tuple of float, one per colour
        Mean and standard deviation of the training pixels, scaled to [0, 1]; what a batch is normalised by.
    """

    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Colours, height and width of one image as the network sees it."""

    @abc.abstractmethod
    def subset(self: AnySplit, numbers: Tensor) -> AnySplit:
        """Make a split of the samples with these `numbers` (int64, shape (M,)), in their order."""

    @abc.abstractmethod
    def read(
        self, numbers: Tensor, augmentation: Augmentation | None, uniform: np.ndarray, mapper: Mapper
    ) -> Tensor:
        """Read images as uint8, shape (M, C, H, W), augmented by the `uniform` draws, shape (M, draws).

        `mapper` is the ``map`` (or a thread pool's) under which images that must be decoded are decoded.
        """

    @abc.abstractmethod
    def checksum(self) -> int:
        """Return a CRC-32 that tells splits apart: of labels and pixels, or of labels and names of files."""

    def limit(self: AnySplit, count: int, seed: int = 0) -> AnySplit:
        """Take a stratified subset: each class keeps its share of the samples, rounded (Webster's method).

        Parameters
        ----------
        count : int
            Samples to keep, 1 to ``len(self)``.
        seed : int, default 0
            Which samples: the same seed takes the same ones, and more of them hold the fewer.

        Raises
        ------
        InvalidValue
            `count` is outside what there is.

        Examples
        --------
        >>> from torchswat.data import load
        >>> load("synthetic", classes=4).train.limit(10).labels.bincount().tolist()
        [3, 3, 2, 2]
        """
        if not 1 <= count <= len(self):
            raise InvalidValue(
                f"limit is {count}: this split has {len(self)} samples; take 1 to {len(self)}."
            )
        shuffled = torch.from_numpy(draws.permutation(seed, draws.SUBSET, 0, len(self)))
        labels = self.labels[shuffled]
        by_class = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels, minlength=len(self.classes))
        rank = torch.arange(len(self)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
        # The r-th of a class of n stands at (r + 1/2) / n: the first of these take each class in proportion.
        position = (rank + 0.5) / sizes[labels[by_class]]
        kept = by_class[torch.argsort(position, stable=True)[:count]]
        return self.subset(shuffled[kept].sort().values)


@dataclass(frozen=True, eq=False)
class Images(Split):
    """Images in memory.

    Attributes
    ----------
    images : Tensor of uint8, shape (N, C, H, W)
    """

    images: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        _, colours, height, width = self.images.shape
        return colours, height, width

    def subset(self, numbers: Tensor) -> Images:
        return dataclasses.replace(self, images=self.images[numbers], labels=self.labels[numbers])

    def checksum(self) -> int:
        return zlib.crc32(self.images.contiguous().numpy().data, _checksum_of_labels(self.labels))

    def read(
        self, numbers: Tensor, augmentation: Augmentation | None, uniform: np.ndarray, mapper: Mapper
    ) -> Tensor:
        images = self.images.index_select(0, numbers)  # copies whole images; indexing is ten times slower
        if augmentation is None:
            return images
        if not isinstance(augmentation, RandomCrop):
            raise InvalidValue(f"{type(augmentation).__name__} is for folders of images; take RandomCrop.")
        return augmentation(images, uniform)


@dataclass(frozen=True, eq=False)
class Pictures(Split):
    """Image files, decoded when they are asked for.

    Attributes
    ----------
    paths : tuple of Path
    view : CentreCrop
        The size that images are brought to, and the part of them that is seen without augmentation.
    """

    paths: tuple[Path, ...]
    view: CentreCrop

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.view.size, self.view.size

    def subset(self, numbers: Tensor) -> Pictures:
        paths = tuple(self.paths[number] for number in numbers.tolist())
        return dataclasses.replace(self, paths=paths, labels=self.labels[numbers])

    def checksum(self) -> int:
        names = "\0".join("/".join(path.parts[-2:]) for path in self.paths)  # class and file
        return zlib.crc32(names.encode(errors="surrogateescape"), _checksum_of_labels(self.labels))

    def read(
        self, numbers: Tensor, augmentation: Augmentation | None, uniform: np.ndarray, mapper: Mapper
    ) -> Tensor:
        if isinstance(augmentation, RandomCrop):
            raise InvalidValue("RandomCrop is for images in memory; take RandomResizedCrop for folders.")

        pixels = np.empty((len(numbers), self.view.size, self.view.size, 3), np.uint8)  # (M, H, W, C)

        def fill(place: int) -> None:
            def choose(width: int, height: int) -> tuple[Box, bool]:
                if augmentation is None:
                    return self.view.box(width, height), False
                return augmentation.box(width, height, uniform[place])

            pixels[place] = decode(self.paths[int(numbers[place])], self.view.size, choose)

        for _ in mapper(fill, range(len(numbers))):
            pass  # waits, and raises what went wrong
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what `torchswat.data.load` returns.

    Attributes
    ----------
    name : str
    train, test : Split
        `Images` or `Pictures`; both splits share classes, mean and std.
    augmentation : RandomCrop or RandomResizedCrop
        The one that suits the set (digits are not mirrored), for ``Batches(train, ..., augment=...)``.
    """

    name: str
    train: Split
    test: Split
    augmentation: Augmentation

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their numbers."""
        return self.train.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Colours, height and width of one image as the network sees it."""
        return self.train.shape

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training pixels scaled to [0, 1], per colour."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training pixels scaled to [0, 1], per colour."""
        return self.train.std


def _checksum_of_labels(labels: Tensor) -> int:
    return zlib.crc32(labels.contiguous().numpy().data)


def colour_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation per colour of uint8 `images`, (N, C, H, W), scaled to [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for colour in images.unbind(1):
        share = torch.bincount(colour.reshape(-1), minlength=256).double() / colour.numel()
        centre = (share * values).sum()
        mean.append(centre.item())
        std.append((share * (values - centre).square()).sum().sqrt().item())
    return tuple(mean), tuple(std)
