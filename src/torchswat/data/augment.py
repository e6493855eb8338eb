"""Augmentation: from which part of an image the network's input is taken, and whether it is mirrored.

Each kind says how many uniform numbers an image takes (`draws`) and does the rest as a pure function of
them. `RandomCrop` works on whole batches of small images in memory; `RandomResizedCrop` and `CentreCrop`
choose a box of a large image, which is then decoded and scaled in one go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from torchswat.data import draws
from torchswat.errors import InvalidValue

LARGEST_SIDE = 2**13  # pixels; a square of it is as large as the largest image that is decoded
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the image
Border = Literal["black", "reflect"]
Flip = Literal["random", "alternating", "none"]


@dataclass(frozen=True)
class RandomCrop:
    """Shift by up to `padding` pixels each way, and mirror left and right.

    The augmentation of CIFAR in section 4.1 of the paper: padding 4, black borders, random flips.

    Parameters
    ----------
    padding : int, default 4
        Pixels added on each side before the original size is cut out again.
    flip : {"random", "alternating", "none"}, default "random"
        Which images are mirrored: each with probability one half in every epoch ("random"); half of them in
        the first epoch, drawn at random, and from then on in each epoch those that were not in the last
        ("alternating"), so that any two epochs in a row show both sides of every image; or none.
    border : {"black", "reflect"}, default "black"
        What is added: zeros, or the image itself mirrored at its outermost pixels. A reflected border must
        be narrower than the image.

    References
    ----------
    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498, the section "Alternating flip".

    Examples
    --------
    >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    >>> RandomCrop(padding=1)(image, np.array([[0.0, 0.5, 0.9]]))[0, 0].tolist()
    [[0, 0], [0, 1]]
    >>> RandomCrop(padding=1, border="reflect")(image, np.array([[0.0, 0.5, 0.9]]))[0, 0].tolist()
    [[2, 3], [0, 1]]
    """

    padding: int = 4
    flip: Flip = "random"
    border: Border = "black"
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InvalidValue(f"padding is {self.padding}: it must be 0 or more pixels.")
        _check_choice("flip", self.flip, get_args(Flip))
        _check_choice("border", self.border, get_args(Border))

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
        if self.border == "reflect" and self.padding >= min(height, width):
            raise InvalidValue(
                f"padding is {self.padding} for images of {height} x {width} pixels: a reflected border must "
                "be narrower than the image."
            )
        top, left = np.floor(uniform[:, :2] * (2 * self.padding + 1)).astype(np.int64).T
        # In numpy: faster than the same in torch, and no second pool of threads beside the training.
        padded = self._pad(images.numpy())
        windows = sliding_window_view(padded, (height, width), (2, 3))  # (N, C, 2P+1, 2P+1, H, W), no copy
        cropped = windows[np.arange(len(images)), :, top, left]  # (N, C, H, W)
        if self.flip != "none":
            mirror = uniform[:, 2] < 0.5
            cropped[mirror] = cropped[mirror][..., ::-1]
        return torch.from_numpy(cropped)

    def _pad(self, images: np.ndarray) -> np.ndarray:
        """Add the border, as `np.pad` does but faster."""
        count, colours, height, width = images.shape
        p, bottom, right = self.padding, self.padding + height, self.padding + width
        padded = np.zeros((count, colours, height + 2 * p, width + 2 * p), images.dtype)
        padded[:, :, p:bottom, p:right] = images
        if self.border == "reflect":
            padded[:, :, p:bottom, :p] = images[..., p:0:-1]
            padded[:, :, p:bottom, right:] = images[..., -2 : -p - 2 : -1]
            padded[:, :, :p] = padded[:, :, 2 * p : p : -1]
            padded[:, :, bottom:] = padded[:, :, bottom - 2 : height - 2 : -1]
        return padded


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and shape, scaled to the input size; mirrored every second time.

    The augmentation of ImageNet in section 4.1 of the paper, as first described by Szegedy et al., "Going
    deeper with convolutions", 2015.

    Parameters
    ----------
    area : (float, float), default (0.08, 1.0)
        Smallest and largest share of the image's area.
    ratio : (float, float), default (3/4, 4/3)
        Smallest and largest width / height; drawn uniformly in its logarithm.
    flip : {"random", "alternating", "none"}, default "random"
        Which images are mirrored left and right; as for `RandomCrop`.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Flip = "random"
    attempts: ClassVar[int] = 10
    draws: ClassVar[int] = 4 * attempts + 1

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InvalidValue(f"area is {self.area}: it must be two shares, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidValue(f"ratio is {self.ratio}: it must be two numbers, 0 < low <= high.")
        _check_choice("flip", self.flip, get_args(Flip))

    def box(self, width: int, height: int, uniform: np.ndarray) -> tuple[Box, bool]:
        """Choose the box of an image of `width` x `height` pixels, and whether to mirror it.

        Boxes that would stick out are drawn again, ten times at most; then the largest centred box of an
        allowed shape is taken.

        Parameters
        ----------
        uniform : ndarray of float64 in [0, 1), shape (41,)
        """
        mirror = bool(self.flip != "none" and uniform[-1] < 0.5)
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
    """The view of a large image at evaluation: shorter side to `resize`, then the centre of `size`.

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
        """Find the box of an image of `width` x `height` pixels that the network sees.

        Scaling this box to `size` is the same as scaling the whole image and cutting afterwards.
        """
        side = min(width, height) * self.size / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


Augmentation = RandomCrop | RandomResizedCrop


def draw(augmentation: Augmentation, seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """Draw the uniform numbers of an augmentation: a pure function of seed, epoch and sample.

    The last number of a sample says whether it is mirrored (below one half). For alternating flips it is that
    of the first epoch, reflected at one half in every second epoch.

    Parameters
    ----------
    samples : ndarray of int64, shape (N,)
        Numbers of the samples in their split.

    Returns
    -------
    ndarray of float64 in [0, 1), shape (N, augmentation.draws)

    Examples
    --------
    >>> crop = RandomCrop(flip="alternating")
    >>> [bool(draw(crop, seed=0, epoch=epoch, samples=np.array([7]))[0, -1] < 0.5) for epoch in range(4)]
    [False, True, False, True]
    """
    uniform = draws.uniform(seed, draws.AUGMENTATION, epoch, samples, augmentation.draws)
    if augmentation.flip == "alternating":
        first = draws.uniform(seed, draws.AUGMENTATION, 0, samples, augmentation.draws)[:, -1]
        uniform[:, -1] = draws.LARGEST - first if epoch % 2 else first
    return uniform


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidValue(f"{name} is {value!r}: it must be one of {', '.join(allowed)}.")
