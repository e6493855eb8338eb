"""Tiny data sets in the published layouts, written from the formats' descriptions and not by our readers."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

IDX_FILES = {
    "train-images-idx3-ubyte": (12, 28, 28),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 28, 28),
    "t10k-labels-idx1-ubyte": (5,),
}


class Python2:
    """Writes protocol 2 as Python 2 did, with byte strings, which Python 3 no longer can."""

    def text(self, value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def number(self, value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def items(self, values: list) -> bytes:
        return b"](" + b"".join(self.any(value) for value in values) + b"e"

    def array(self, value: np.ndarray) -> bytes:
        shape = b"(" + b"".join(self.number(length) for length in value.shape) + b"t"
        empty = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + self.number(0) + b"\x85U\x01b\x87R"
        )
        code = value.dtype.str[1:].encode()
        dtype = b"cnumpy\ndtype\n" + self.text(code) + self.number(0) + self.number(1) + b"\x87R"
        dtype += (
            b"(" + self.number(3) + self.text(b"|") + b"NNN" + self.number(-1) * 2 + self.number(0) + b"tb"
        )
        state = b"(" + self.number(1) + shape + dtype + b"\x89" + self.text(value.tobytes()) + b"tb"
        return empty + state

    def any(self, value) -> bytes:
        kinds = {bytes: self.text, int: self.number, list: self.items, np.ndarray: self.array}
        return kinds[type(value)](value)

    def dump(self, content: dict[bytes, object]) -> bytes:
        pairs = b"".join(self.text(key) + self.any(value) for key, value in content.items())
        return b"\x80\x02}(" + pairs + b"u."


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cifar_batch(count: int, key: bytes, classes: int, seed: int = 0) -> dict[bytes, object]:
    labels = [number % classes for number in range(count)]
    return {b"data": random_bytes(count, 3072, seed=seed), key: labels, b"batch_label": b"made up"}


def write_cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        folder.joinpath(name).write_bytes(Python2().dump(cifar_batch(4, b"labels", 10, seed)))
    classes = [f"class {number}".encode() for number in range(10)]
    folder.joinpath("batches.meta").write_bytes(Python2().dump({b"label_names": classes}))
    return folder


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(["train", "test"]):
        folder.joinpath(name).write_bytes(Python2().dump(cifar_batch(6, b"fine_labels", 100, seed)))
    classes = [f"class {number}".encode() for number in range(100)]
    folder.joinpath("meta").write_bytes(Python2().dump({b"fine_label_names": classes}))
    return folder


def idx(array: np.ndarray) -> bytes:
    dimensions = b"".join(struct.pack(">I", length) for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dimensions + array.tobytes()


def write_fashion(root: Path, folder: str = "FashionMNIST/raw", packed: bool = True) -> Path:
    place = root / folder
    place.mkdir(parents=True)
    for name, shape in IDX_FILES.items():
        content = idx(random_bytes(*shape) if len(shape) == 3 else random_bytes(*shape) % 10)
        if packed:
            place.joinpath(f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            place.joinpath(name).write_bytes(content)
    return place


def write_pictures(folder: Path, classes=("cat", "dog"), train: int = 3, val: int = 2) -> Path:
    """Write a folder of pictures of different sizes; smooth, so that JPEG keeps them nearly as they are."""
    for part, count in {"train": train, "val": val}.items():
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                picture = gradient(40 + 7 * index, 30 + 5 * number)
                Image.fromarray(picture).save(folder / part / name / f"{index}.jpg", quality=95)
    return folder


def gradient(width: int, height: int) -> np.ndarray:
    across = np.linspace(0, 255, width)[None, :, None]
    down = np.linspace(0, 255, height)[:, None, None]
    colours = np.broadcast_arrays(across, down, (across + down) / 2)
    return np.concatenate(colours, axis=2).round().astype(np.uint8)
