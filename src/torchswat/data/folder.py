"""Folders of images: ``train/<class>/<image>`` and ``val/<class>/<image>``, as ImageNet is unpacked."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch

from torchswat.data.augment import CentreCrop, RandomResizedCrop
from torchswat.data.dataset import Dataset, Pictures
from torchswat.data.picture import EXTENSIONS
from torchswat.data.source import Source
from torchswat.errors import InvalidData, MissingData

# Of ImageNet's training set, as everyone uses them since Krizhevsky et al., 2012.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_folder(folder: Path, *, size: int = 224, resize: int = 256) -> Dataset:
    """List a folder of images; nothing is decoded yet.

    Parameters
    ----------
    folder : Path
        Holds ``train`` and ``val``, each with one folder a class, the same ones, each with images
        (.jpg, .jpeg, .png, .bmp, .ppm, .pgm, .tif, .tiff, .webp); hidden files and others are ignored.
        Classes are called by their folders or, where ``classes.txt`` or ImageNet's
        ``LOC_synset_mapping.txt`` lies beside ``train``, as a line of it says: ``n01440764 tench``, with or
        without a number in front.
    size, resize : int, default 224 and 256
        See `CentreCrop`.

    Raises
    ------
    MissingData
        ``train`` or ``val`` is not there.
    InvalidData
        There is no class, a class without images, or the classes of the two differ.
    """
    view = CentreCrop(resize, size)
    train, val = (_list_classes(folder / part) for part in ("train", "val"))
    if train.keys() != val.keys():
        alone = sorted(train.keys() ^ val.keys())
        shown = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
        raise InvalidData(
            f"{folder}: train and val must have the same class folders, but {len(alone)} are in one of them"
            f" only: {shown}."
        )
    names = _names(folder, list(train))
    return Dataset(
        folder.name, _split(train, names, view), _split(val, names, view), augmentation=RandomResizedCrop()
    )


def _list_classes(part: Path) -> dict[str, list[Path]]:
    if not part.is_dir():
        raise MissingData(
            f"{part} is not there: a folder of images holds train/<class>/<image> and val/<class>/<image>."
        )
    folders = sorted(
        entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith(".")
    )
    if not folders:
        raise InvalidData(f"{part} holds no class folders: one folder a class is expected in it.")
    classes = {name: _list_pictures(part / name) for name in folders}
    for name, paths in classes.items():
        if not paths:
            raise InvalidData(
                f"{part / name} holds no images (files ending in {', '.join(sorted(EXTENSIONS))}):"
                f" add some or remove the class from train and val."
            )
    return classes


def _list_pictures(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return [folder / name for name in names if Path(name).suffix.lower() in EXTENSIONS]


_NAMES = ("classes.txt", "LOC_synset_mapping.txt")


def _names(folder: Path, classes: list[str]) -> tuple[str, ...]:
    """Say how the classes are called: as a file says, with the folder where two are called the same."""
    said: dict[str, str] = {}
    for path in (folder / name for name in _NAMES):
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split()
                if words and words[0] not in classes and words[0].isdecimal():
                    words = words[1:]
                if len(words) > 1 and words[0] in classes:
                    said[words[0]] = " ".join(words[1:])
    often = Counter(said.values())
    return tuple(
        f"{said[name]} ({name})" if often[said.get(name, "")] > 1 else said.get(name, name)
        for name in classes
    )


def _split(classes: dict[str, list[Path]], names: tuple[str, ...], view: CentreCrop) -> Pictures:
    paths = tuple(path for members in classes.values() for path in members)
    sizes = torch.tensor([len(members) for members in classes.values()])
    labels = torch.repeat_interleave(torch.arange(len(classes)), sizes)
    return Pictures(labels=labels, classes=names, mean=MEAN, std=STD, paths=paths, view=view)


def _read_imagenet(root: Path, *, size: int = 224, resize: int = 256) -> Dataset:
    folder = root / IMAGENET.name
    if not folder.is_dir():
        raise MissingData(IMAGENET.how_to_get(root))
    return read_folder(folder, size=size, resize=resize)


IMAGENET = Source(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    summary="1,281,167 + 50,000 images, 1000 classes, seen at 3 x 224 x 224",
    read=_read_imagenet,
    page="https://www.image-net.org/download.php",
    advice="unpack ILSVRC2012_img_train.tar (md5 1d675b47d978889d74fa0da5fadfb00e) and ILSVRC2012_img_val.tar"
    " (md5 29b22e2961454d5413ddabcf34fc5622) as imagenet/train/<class>/*.JPEG"
    " and imagenet/val/<class>/*.JPEG",
)
