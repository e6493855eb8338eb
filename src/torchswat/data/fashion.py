"""Fashion-MNIST, from the four IDX files of the official repository, gzipped or not.

H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms, 2017.

An IDX file is two zero bytes, the kind of number (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, and the numbers.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchswat.data.augment import RandomCrop
from torchswat.data.dataset import Dataset, Images
from torchswat.data.source import File, Source
from torchswat.errors import InvalidData

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, STD = (0.2860,), (0.3530,)  # of the 60,000 training images


def read_idx(path: Path, shape: tuple[int | None, ...], most: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Parameters
    ----------
    path : Path
        Gzipped where it ends in ``.gz``.
    shape : tuple of int or None
        The shape it must have; None for the first dimension, which is free.
    most : int
        Largest first dimension: a header that claims more is not believed, and not allocated for.

    Returns
    -------
    Tensor of uint8

    Raises
    ------
    InvalidData
        The header, the shape or the length is not what it must be.
    """
    header_size = 4 + 4 * len(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(header_size)
            expected = struct.pack(">HBB", 0, 8, len(shape))
            if len(header) < header_size or header[:4] != expected:
                raise InvalidData(
                    f"{path} does not begin like an IDX file of bytes with {len(shape)} dimensions:"
                    f" {header[:4].hex()} instead of {expected.hex()}."
                )
            found = struct.unpack(f">{len(shape)}I", header[4:])
            if not 1 <= found[0] <= most or found[1:] != shape[1:]:
                wanted = " x ".join([f"(1 to {most})", *map(str, shape[1:])])
                raise InvalidData(
                    f"{path} claims to be {' x '.join(map(str, found))}, which is not {wanted}."
                )
            size = math.prod(found)
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} is damaged or truncated: {error}. Fetch it again.") from error
    if len(content) != size:
        relation = "more" if len(content) > size else f"only {len(content)}"
        raise InvalidData(f"{path} must hold {size} bytes after its header, but holds {relation}.")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(found).copy())


def _read_fashion(root: Path) -> Dataset:
    train_images, train_labels, test_images, test_labels = FASHION.locate(root)
    return Dataset(
        "fashion-mnist",
        _read_split(train_images, train_labels, 60_000),
        _read_split(test_images, test_labels, 10_000),
        augmentation=RandomCrop(padding=2),
    )


def _read_split(images_path: Path, labels_path: Path, most: int) -> Images:
    images = read_idx(images_path, (None, 28, 28), most)[:, None]  # (N, 1, 28, 28)
    labels = read_idx(labels_path, (None,), most).long()
    if len(images) != len(labels):
        raise InvalidData(
            f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels."
        )
    if labels.max() >= len(CLASSES):
        raise InvalidData(
            f"{labels_path} holds the label {labels.max()}; labels are 0 to {len(CLASSES) - 1}."
        )
    return Images(images=images, labels=labels, classes=CLASSES, mean=MEAN, std=STD)


def _file(name: str, packed: str, unpacked: str) -> File:
    """Accept a file packed or not (each has its md5), in the folder ``FashionMNIST/raw`` or above."""
    kinds = {".gz": packed, "": unpacked}
    folders = ("FashionMNIST/raw", "FashionMNIST")
    return File({f"{folder}/{name}{end}": kinds[end] for folder in folders for end in kinds})


FASHION = Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    summary="60,000 + 10,000 images, 1 x 28 x 28, 10 classes",
    read=_read_fashion,
    files=(
        _file(
            "train-images-idx3-ubyte",
            packed="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            unpacked="f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ),
        _file(
            "train-labels-idx1-ubyte",
            packed="25c81989df183df01b3e8a0aad5dffbe",
            unpacked="9018921c3c673c538a1fc5bad174d6f9",
        ),
        _file(
            "t10k-images-idx3-ubyte",
            packed="bef4ecab320f06d8554ea6380940ec79",
            unpacked="8181f5470baa50b63fa0f6fddb340f0a",
        ),
        _file(
            "t10k-labels-idx1-ubyte",
            packed="bb300cfdad3c16e7a12a480ee83cd310",
            unpacked="15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    page="https://github.com/zalandoresearch/fashion-mnist",
    advice="fetch the four files of data/fashion/ and put them, packed or not, where the list says",
)
