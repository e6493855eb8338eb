"""Augmentation: from which part of a picture the network's input is taken, and whether it is mirrored.

Each kind says how many uniform numbers a picture takes (`draws`) and does the rest as a pure function of
them. `RandomCrop` works on whole batches of small pictures in memory; `RandomResizedCrop` and `CentreCrop`
choose a box of a large picture, which is then decoded and scaled in one go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from torchswat.errors import InvalidValue

LARGEST_SIDE = 2**13  # pixels; a square of it is as large as the largest image that is decoded
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture


@dataclass(frozen=True)
class RandomCrop:
    """Shift by up to `padding` pixels (black comes in from outside) and mirror every second picture.

    The augmentation of CIFAR in section 4.1 of the paper: padding 4 and flip.

    Parameters
    ----------
    padding : int, default 4
        Pixels added on each side before the original size is cut out again.
    flip : bool, default True
        Mirror left and right with probability one half.

    Examples
    --------
    >>> picture = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    >>> RandomCrop(padding=1)(picture, np.array([[0.0, 0.5, 0.9]]))[0, 0].tolist()
    [[0, 0], [0, 1]]
    """

    padding: int = 4
    flip: bool = True
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InvalidValue(f"padding is {self.padding}: it must be 0 or more pixels.")

    def __call__(self, images: Tensor, uniform: np.ndarray) -> Tensor:
        """Crop and mirror.

        Parameters
        ----------
        images : Tensor of any dtype, shape (N, C, H, W)
        uniform : ndarray of float64 in [0, 1), shape (N, 3)
            Vertical shift, horizontal shift, mirror (below one half).

        Returns
        -------
        Tensor of the same dtype and shape
        """
        height, width = images.shape[2:]
        top, left = np.floor(uniform[:, :2] * (2 * self.padding + 1)).astype(np.int64).T
        # In numpy: twice as fast as the same in torch, and no second pool of threads beside the training.
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (self.padding,) * 2, (self.padding,) * 2))
        windows = sliding_window_view(padded, (height, width), (2, 3))  # (N, C, 2P+1, 2P+1, H, W), no copy
        cropped = windows[np.arange(len(images)), :, top, left]  # (N, C, H, W)
        if self.flip:
            mirror = uniform[:, 2] < 0.5
            cropped[mirror] = cropped[mirror][..., ::-1]
        return torch.from_numpy(cropped)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and shape, scaled to the input size; mirrored every second time.

    The augmentation of ImageNet in section 4.1 of the paper, as first described by Szegedy et al., "Going
    deeper with convolutions", 2015.

    Parameters
    ----------
    area : (float, float), default (0.08, 1.0)
        Smallest and largest share of the picture's area.
    ratio : (float, float), default (3/4, 4/3)
        Smallest and largest width / height; drawn uniformly in its logarithm.
    flip : bool, default True
        Mirror left and right with probability one half.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    attempts: ClassVar[int] = 10
    draws: ClassVar[int] = 4 * attempts + 1

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InvalidValue(f"area is {self.area}: it must be two shares, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidValue(f"ratio is {self.ratio}: it must be two numbers, 0 < low <= high.")

    def box(self, width: int, height: int, uniform: np.ndarray) -> tuple[Box, bool]:
        """Choose the box of a picture of `width` x `height` pixels, and whether to mirror it.

        Boxes that would stick out are drawn again, ten times at most; then the largest centred box of an
        allowed shape is taken.

        Parameters
        ----------
        uniform : ndarray of float64 in [0, 1), shape (41,)
        """
        mirror = bool(self.flip and uniform[-1] < 0.5)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, shape, across, down in uniform[:-1].reshape(self.attempts, 4):
            pixels = width * height * (self.area[0] + area * (self.area[1] - self.area[0]))
            ratio = math.exp(low + shape * (high - low))
            box_width, box_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                left = math.floor(across * (width - box_width + 1))
                top = math.floor(down * (height - box_height + 1))
                return (left, top, left + box_width, top + box_height), mirror

        box_width = min(width, height * self.ratio[1])
        box_height = min(height, width / self.ratio[0])
        left, top = (width - box_width) / 2, (height - box_height) / 2
        return (left, top, left + box_width, top + box_height), mirror


@dataclass(frozen=True)
class CentreCrop:
    """The view of a large picture at evaluation: shorter side to `resize`, then the centre of `size`.

    Parameters
    ----------
    resize : int, default 256
        Length of the shorter side, in pixels, before the cut.
    size : int, default 224
        Height and width of the network's input, in pixels; at most `resize`.

    Examples
    --------
    >>> CentreCrop(resize=256, size=224).box(512, 256)
    (144.0, 16.0, 368.0, 240.0)
    """

    resize: int = 256
    size: int = 224

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize <= LARGEST_SIDE:
            raise InvalidValue(
                f"size is {self.size} and resize is {self.resize}: it must be "
                f"0 < size <= resize <= {LARGEST_SIDE}."
            )

    def box(self, width: int, height: int) -> Box:
        """Find the box of a picture of `width` x `height` pixels that the network sees.

        Scaling this box to `size` is the same as scaling the whole picture and cutting afterwards.
        """
        side = min(width, height) * self.size / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


Augmentation = RandomCrop | RandomResizedCrop
