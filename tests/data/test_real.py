"""The real sets below TORCHSWAT_DATA, where they are: official counts, statistics and labels."""

from pathlib import Path

import pytest
import torch

from torchswat.data import Batches, Dataset, check, load
from torchswat.data.dataset import colour_statistics


def real(name: str, root: Path) -> Dataset:
    status = check(name, root)
    if status.state == "missing":
        pytest.skip(f"{name} {status.detail}")
    assert status.state in ("official", "sound"), status
    return load(name, root)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_counts_statistics_and_an_epoch(data_root, name):
    dataset = real(name, data_root)
    is_official = check(name, data_root).state == "official"
    if is_official:
        assert len(dataset.train) == (60_000 if name == "fashion-mnist" else 50_000)
        assert len(dataset.test) == 10_000
    counts = dataset.train.labels.bincount()
    assert counts.min() == counts.max() and len(counts) == len(dataset.classes)
    mean, std = colour_statistics(dataset.train.images)
    tolerance = 1e-4 if is_official else 5e-3
    assert mean == pytest.approx(dataset.mean, abs=tolerance)
    assert std == pytest.approx(dataset.std, abs=tolerance)

    batches = Batches(dataset.train.limit(1000), 128, shuffle=True, augment=dataset.augmentation)
    images, labels = next(iter(batches))
    assert images.shape == (128, *dataset.shape) and images.isfinite().all()
    assert len(batches) == 8 and labels.unique().numel() > 5


def test_the_first_labels_of_cifar10(data_root):
    dataset = real("cifar10", data_root)
    shown = [dataset.classes[label] for label in dataset.train.labels[:4]]
    assert shown == ["frog", "truck", "truck", "deer"]


def test_the_first_labels_of_fashion_mnist(data_root):
    dataset = real("fashion-mnist", data_root)
    assert [dataset.classes[label] for label in dataset.train.labels[:3]] == [
        "Ankle boot",
        *["T-shirt/top"] * 2,
    ]


def test_pictures_of_imagenet(data_root):
    folder = data_root / "imagenette-tiny"
    if not folder.is_dir():
        pytest.skip("there is no folder imagenette-tiny below TORCHSWAT_DATA")
    dataset = load(str(folder), size=64, resize=72)
    assert len(dataset.classes) == 10
    for split, augment in (dataset.train, dataset.augmentation), (dataset.test, None):
        images = torch.cat([images for images, _ in Batches(split, 40, augment=augment)])
        assert images.shape == (len(split), 3, 64, 64)
        assert images.mean((0, 2, 3)).abs().max() < 0.5  # grey ones among them; about ImageNet's mean and std
        assert images.std((0, 2, 3)) == pytest.approx(torch.ones(3), abs=0.3)
