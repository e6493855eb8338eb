"""Images of files as the batches by which a network is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from torchswat.deploy.predict import BATCH, Reader
from torchswat.runtime.network import normalised
from torchswat.runtime.package import About

CALIBRATED = 512  # images by which ranges are chosen, at most


def batches(
    reader: Reader, files: Sequence[Path], about: About, progress: Callable[[int, int], object]
) -> Iterator[np.ndarray]:
    """Yield the images of `files`, normalised, some at a time.

    Raises
    ------
    InvalidData
        One cannot be read.
    """
    for at in range(0, len(files), BATCH):
        pixels = torch.stack([reader.read(file) for file in files[at : at + BATCH]])
        yield normalised(pixels, about).numpy()
        progress(min(at + BATCH, len(files)), len(files))
