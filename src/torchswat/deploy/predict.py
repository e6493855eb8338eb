"""Images in, names and probabilities out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchswat.data.augment import Box, CentreCrop
from torchswat.data.picture import EXTENSIONS, decode
from torchswat.errors import InvalidData, InvalidValue, MissingData
from torchswat.runtime.network import Network

BATCH = 32  # images that are decoded before the network runs


@dataclass(frozen=True)
class Guess:
    """A class and how probable the network finds it."""

    number: int
    name: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Reader:
    """Brings image files to what a network was made for.

    Parameters
    ----------
    network : Network
        Of `torchswat.load`.

    Raises
    ------
    InvalidValue
        Where its images are not square, or neither grey nor RGB.
    """

    def __init__(self, network: Network) -> None:
        shape = network.package.graph.input_shape
        if len(shape) != 3 or len(network.package.graph.inputs) != 1:
            raise InvalidValue(
                f"this network takes {len(network.package.graph.inputs)} inputs of {shape}, no images"
            )
        self.channels: int
        self.channels, height, width = shape
        if height != width or self.channels not in (1, 3):
            raise InvalidValue(
                f"this network takes {self.channels} channels of {height} x {width}; "
                "images can be shown to networks for square ones of 1 or 3 channels"
            )
        self.size: int = width
        resize = network.package.about.resize
        self.view: CentreCrop | None = CentreCrop(max(resize, width), width) if resize else None

    def read(self, source: Path | bytes) -> Tensor:
        """Return the pixels of an image, uint8 (C, H, W).

        Raises
        ------
        InvalidData
            It cannot be read, or has too many pixels.
        """
        pixels = decode(source if isinstance(source, Path) else io.BytesIO(source), self.size, self._box)
        if self.channels == 1:  # luma as in ITU-R BT.601
            grey = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
            pixels = grey.round().astype(np.uint8)[:, :, None]
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def _box(self, width: int, height: int) -> tuple[Box, bool]:
        return (self.view.box(width, height) if self.view else (0, 0, width, height)), False


def best(network: Network, probabilities: Tensor, top: int) -> list[Guess]:
    """Return the `top` most probable classes from the probabilities (classes,) of one image."""
    values, numbers = probabilities.topk(min(top, len(probabilities)))
    classes = network.package.about.classes
    return [
        Guess(number, classes[number] if classes else str(number), value)
        for number, value in zip(numbers.tolist(), values.tolist(), strict=True)
    ]


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """Return the files that `paths` mean: themselves, and of folders all images in them, in order of name.

    Raises
    ------
    MissingData
        A path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file()
            )
            if not found:
                raise MissingData(f"the folder {path} holds no images ({', '.join(sorted(EXTENSIONS))})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise MissingData(f"there is no image {path}")
    return files


def predict(
    network: Network, files: Iterable[Path], top: int = 5
) -> Iterator[tuple[Path, list[Guess] | InvalidData]]:
    """Yield each file with its `top` guesses, or with what is wrong with it."""
    reader = Reader(network)
    waiting: list[tuple[Path, Tensor | InvalidData]] = []
    for file in files:
        try:
            waiting.append((file, reader.read(file)))
        except InvalidData as error:
            waiting.append((file, error))
        if len(waiting) == BATCH:
            yield from _guesses(network, waiting, top)
            waiting = []
    yield from _guesses(network, waiting, top)


def _guesses(
    network: Network, waiting: list[tuple[Path, Tensor | InvalidData]], top: int
) -> Iterator[tuple[Path, list[Guess] | InvalidData]]:
    pixels = [picture for _, picture in waiting if isinstance(picture, Tensor)]
    rows = iter(network.probabilities(torch.stack(pixels)) if pixels else ())
    for file, picture in waiting:
        yield file, picture if isinstance(picture, InvalidData) else best(network, next(rows), top)
