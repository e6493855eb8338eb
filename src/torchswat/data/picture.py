"""One picture file to pixels: decoded, cut, scaled, RGB. Whatever is wrong with it names its path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from torchswat.data.augment import Box
from torchswat.errors import InvalidData, MissingDependency

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
LARGEST = 2**26  # pixels; a few kilobytes of PNG can claim gigabytes


def decode(source: Path | BinaryIO, size: int, choose: Callable[[int, int], tuple[Box, bool]]) -> np.ndarray:
    """Decode a picture, take a box of it, scale that to a square.

    Grey, palette and CMYK pictures become RGB; transparency is dropped. Scaling is bilinear with
    antialiasing.

    Parameters
    ----------
    source : Path or binary stream
    size : int
        Height and width of the result, in pixels.
    choose : callable
        From the picture's width and height to the box and whether to mirror.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    InvalidData
        The file cannot be read as a picture, is truncated, or has more than 67 million pixels.
    MissingDependency
        Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency(
            'reading pictures needs Pillow: install it by `pip install "torchswat[train]"`.'
        ) from error

    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST:
                raise ValueError(f"{width} x {height} pixels are more than the {LARGEST} allowed")
            box, mirror = choose(width, height)
            scaled = _to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, zlib.error...
    except Exception as error:
        name = source if isinstance(source, Path) else "this"
        raise InvalidData(
            f"{name} is not a readable picture ({error}). Replace it by an intact copy or remove it."
        ) from error
    if mirror:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(scaled)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert where Pillow's own conversion would saturate or warn."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16-bit grey
        upper = np.asarray(image).astype(np.int32) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
