"""One image file to pixels: decoded, cut, scaled, RGB. Whatever is wrong with it names its path."""

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
    """Decode an image, take a box of it, scale that to a square.

    An image is turned upright as its EXIF data say. Grey, palette and CMYK images become RGB; transparency
    is dropped. Scaling is bilinear with antialiasing.

    Parameters
    ----------
    source : Path or binary stream
    size : int
        Height and width of the result, in pixels.
    choose : callable
        From the upright picture's width and height to the box and whether to mirror.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    InvalidData
        The file cannot be read as an image, is truncated, or has more than 67 million pixels.
    MissingDependency
        Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependency(
            'reading images needs Pillow: install it by `pip install "torchswat[train]"`.'
        ) from error

    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST:
                raise ValueError(f"{width} x {height} pixels are more than the {LARGEST} allowed")
            upright = _upright(image)
            box, mirror = choose(*upright.size)
            scaled = _to_rgb(upright).resize((size, size), Image.Resampling.BILINEAR, box=box)
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, zlib.error...
    except Exception as error:
        name = source if isinstance(source, Path) else "this"
        why = f"it is none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise InvalidData(
            f"{name} is not a readable image ({why}). Replace it by an intact copy or remove it."
        ) from error
    if mirror:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(scaled)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as the camera noted that it was held; a note that cannot be read counts for nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the decoders of notes raise as much as those of images
        return image


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
