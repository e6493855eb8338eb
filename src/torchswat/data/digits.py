"""The 8 x 8 digits that come with scikit-learn: real images, nothing to download.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(its test part: 1,797 digits of 13 writers).
"""

from __future__ import annotations

from pathlib import Path

import torch

from torchswat.data.augment import RandomCrop
from torchswat.data.dataset import Dataset, Images, colour_statistics
from torchswat.data.source import Source
from torchswat.errors import MissingDependency


def _read_digits(root: Path) -> Dataset:
    """Read the digits; every fifth of each class is for the test, so the split is fixed and stratified."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency(
            'the digits come with scikit-learn: install it by `pip install "torchswat[train]"`.'
        ) from error

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
    images = (images * (255 / 16)).round().to(torch.uint8)  # ink is published as 0 to 16
    labels = torch.from_numpy(labels).long()

    occurrence = torch.nn.functional.one_hot(labels).cumsum(0)[torch.arange(len(labels)), labels]
    is_test = occurrence % 5 == 0
    mean, std = colour_statistics(images[~is_test])
    classes = tuple("0123456789")
    train, test = (
        Images(images=images[part], labels=labels[part], classes=classes, mean=mean, std=std)
        for part in (~is_test, is_test)
    )
    return Dataset("digits", train, test, augmentation=RandomCrop(padding=1, flip="none"))


DIGITS = Source(
    name="digits",
    title="Digits of scikit-learn",
    summary="1,442 + 355 images, 1 x 8 x 8, 10 classes",
    read=_read_digits,
)
