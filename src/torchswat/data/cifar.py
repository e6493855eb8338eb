"""CIFAR-10 and CIFAR-100, from the "python version" of the official page.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Batches are pickled dictionaries
with ``data``, uint8 of shape (N, 3072), one row an image in the order colour, row, column.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchswat.data.augment import RandomCrop
from torchswat.data.dataset import Dataset, Images
from torchswat.data.pickles import read_pickle
from torchswat.data.source import File, Source
from torchswat.errors import InvalidData

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def _read_cifar10(root: Path) -> Dataset:
    *batches, test, meta = CIFAR10.locate(root)
    classes = _read_classes(meta, "label_names", 10)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
    return _dataset("cifar10", batches, test, classes, "labels", mean, std)


def _read_cifar100(root: Path) -> Dataset:
    train, test, meta = CIFAR100.locate(root)
    classes = _read_classes(meta, "fine_label_names", 100)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the 50,000 training images
    return _dataset("cifar100", [train], test, classes, "fine_labels", mean, std)


def _dataset(
    name: str,
    train: list[Path],
    test: Path,
    classes: tuple[str, ...],
    label_key: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    def split(paths: list[Path]) -> Images:
        images, labels = zip(*(_read_batch(path, label_key, len(classes)) for path in paths), strict=True)
        return Images(images=torch.cat(images), labels=torch.cat(labels), classes=classes, mean=mean, std=std)

    return Dataset(name, split(train), split([test]), augmentation=RandomCrop(padding=4))


def _read_batch(path: Path, label_key: str, classes: int) -> tuple[Tensor, Tensor]:
    """Read one batch: images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""
    content = read_pickle(path)
    data, labels = content.get("data"), content.get(label_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not len(data):
        found = f"shape {data.shape}" if isinstance(data, np.ndarray) else f"{type(data).__name__}"
        raise InvalidData(f"{path}: 'data' must be an array of shape (N, 3072), but is {found}.")
    if not isinstance(labels, list) or len(labels) != len(data):
        found = f"{len(labels)} of them" if isinstance(labels, list) else f"{type(labels).__name__}"
        raise InvalidData(f"{path}: {label_key!r} must be a list of {len(data)} labels, but is {found}.")
    for label in labels:
        if type(label) is not int or not 0 <= label < classes:
            found = label if type(label) is int else type(label).__name__
            raise InvalidData(f"{path}: {label_key!r} holds {found}; labels are 0 to {classes - 1}.")
    images = torch.from_numpy(data.reshape(-1, 3, 32, 32).copy())  # the file's own bytes are read-only
    return images, torch.tensor(labels)


def _read_classes(path: Path, key: str, count: int) -> tuple[str, ...]:
    names = read_pickle(path).get(key)
    if not isinstance(names, list) or len(names) != count or {type(name) for name in names} - {bytes, str}:
        raise InvalidData(f"{path}: {key!r} must be a list of {count} class names.")
    return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)


CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10",
    summary="50,000 + 10,000 images, 3 x 32 x 32, 10 classes",
    read=_read_cifar10,
    files=tuple(
        File({f"cifar-10-batches-py/{name}": digest})
        for name, digest in {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        }.items()
    ),
    page=PAGE,
    advice='fetch "CIFAR-10 python version" (cifar-10-python.tar.gz, md5 c58f30108f718f92721af3b95e74349a)'
    " and unpack it there",
)

CIFAR100 = Source(
    name="cifar100",
    title="CIFAR-100",
    summary="50,000 + 10,000 images, 3 x 32 x 32, 100 classes",
    read=_read_cifar100,
    files=tuple(
        File({f"cifar-100-python/{name}": digest})
        for name, digest in {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }.items()
    ),
    page=PAGE,
    advice='fetch "CIFAR-100 python version" (cifar-100-python.tar.gz, md5 eb9058c3a382ffc7106e4002c42a8d85)'
    " and unpack it there",
)
