"""From a torch module to a file of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchswat.errors import InvalidData, InvalidValue
from torchswat.files import write_atomically
from torchswat.runtime import container
from torchswat.runtime.package import About, Package
from torchswat.runtime.trace import trace


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor | tuple[Tensor, ...] | None = None,
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    resize: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a trained network, pruned, into one small file that `load` makes a fast network of.

    The file is a safetensors file: kept weights in float32 and where they belong, batch norm folded into
    them, and the operations as plain data (docs/format.md). It is written atomically. `model` is left alone.

    Parameters
    ----------
    model : Module
        A sparse network, or one that was pruned before. It is saved as it answers: weights that its forward
        pass leaves out become zeros, others stay (SAW, whose forward pass is dense, keeps all); activations
        are never left out, as DSG's are. It is read by `torch.export`, so its flow may depend on sizes but
        not on data.
    path : str or path
        Of the file, by custom ``.safetensors``.
    example : Tensor of shape (N, C, H, W), or tuple of Tensor, optional
        What the network takes, in float32 as a rule, one argument each, with the number of images first. That
        number is free in the file; height and width are where the network lets them.
    input_shape : sequence of int, default (3, 32, 32)
        Channels, height and width of the images that it is made for, where there is no `example`.
    classes : sequence of str, default ()
        Names of the outputs.
    mean : sequence of float, default ()
        Subtracted from images scaled to [0, 1], one number a channel.
    std : sequence of float, default ()
        By which images are divided then, one number a channel.
    resize : int, default 0
        Shorter side, in pixels, of images before their centre is cropped; 0 to resize them as a whole.
    provenance : mapping, optional
        Whatever should be known of its origin, as JSON values.

    Raises
    ------
    InvalidValue
        For a network that cannot be read, or a description that does not fit it.
    CheckpointError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile, torch, torchswat
    >>> model = torchswat.sparsify_(torchswat.models.create("resnet-digits"), sparsity=0.9)
    >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
    >>> torchswat.save(model, path, input_shape=(1, 8, 8), classes=list("0123456789"))
    >>> torchswat.load(path)(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """
    if example is None:
        shape = tuple(input_shape)
        if len(shape) != 3 or not all(isinstance(size, int) and 0 < size <= 2**16 for size in shape):
            raise InvalidValue(f"input_shape is {input_shape!r}; allowed is (channels, height, width)")
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    graph, tensors = trace(model, example)
    about = About(tuple(classes), tuple(mean), tuple(std), resize, dict(provenance or {}))
    write(Package(graph, tensors, about), Path(path))


def write(package: Package, path: Path) -> None:
    """Write a package into a file, atomically, once it is sure that it can be read again.

    Parameters
    ----------
    package : Package
        What to write.
    path : Path
        Of the file.

    Raises
    ------
    InvalidValue
        It does not fit together.
    CheckpointError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
    >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> write(Package.read(path), path)
    """
    try:
        content = package.to_bytes()
        Package.checked(*container.from_bytes(content, "the network"))
    except (InvalidData, TypeError, ValueError) as error:
        raise InvalidValue(f"this network cannot be saved: {error}") from None
    write_atomically(path, content)
