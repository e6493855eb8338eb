"""A trained network in one file: sparse weights, operations, and all that is needed to give it an image.

The format is described in docs/format.md. Reading one executes nothing that stands in it.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torchswat.errors import InvalidData, InvalidValue
from torchswat.files import write_atomically
from torchswat.runtime import container, sparse
from torchswat.runtime.container import Arrays
from torchswat.runtime.graph import Graph
from torchswat.runtime.trace import trace

FORMAT = "torchswat network 1"
KEY = "torchswat"


@dataclass(frozen=True)
class About:
    """What is known of a network beyond its numbers.

    Attributes
    ----------
    classes : tuple of str
        Names of the outputs; empty where they have none.
    mean : tuple of float
        Subtracted from images scaled to [0, 1], one number a channel; empty for no normalisation.
    std : tuple of float
        By which images are divided then, one number a channel.
    resize : int
        Shorter side, in pixels, to which an image is resized before its centre is cropped; 0 where images are
        resized to the network's input as a whole.
    provenance : dict
        Where the network comes from: text or numbers by name.

    Examples
    --------
    >>> About(classes=("cat", "dog")).classes
    ('cat', 'dog')
    """

    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """What a file holds.

    Attributes
    ----------
    graph : Graph
        The operations.
    tensors : dict of str to ndarray
        Dense float32 weights by ``<node>.<part>``.
    about : About
        Names, normalisation, provenance.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
    >>> save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> Package.read(path).graph.nodes[0].operation
    'conv2d'
    """

    graph: Graph
    tensors: Arrays
    about: About

    def to_bytes(self) -> bytes:
        """Return the content of the file.

        Returns
        -------
        bytes

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> Package.read(path).to_bytes() == path.read_bytes()
        True
        """
        arrays: Arrays = {}
        forms: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            form, parts = sparse.pack(tensor)
            forms[name] = {"form": form, "shape": list(tensor.shape)}
            arrays |= {f"{name}/{part}": array for part, array in parts.items()}
        about = self.about
        header = {
            "format": FORMAT,
            "network": self.graph.to_json(),
            "tensors": forms,
            "classes": list(about.classes),
            "mean": list(about.mean),
            "std": list(about.std),
            "resize": about.resize,
            "provenance": dict(about.provenance),
        }
        return container.to_bytes(arrays, {KEY: json.dumps({**header, "crc32": _checksum(header, arrays)})})

    @classmethod
    def read(cls, path: Path) -> Package:
        """Read a file.

        Parameters
        ----------
        path : Path
            Of the file.

        Returns
        -------
        Package

        Raises
        ------
        MissingData
            There is no such file.
        InvalidData
            It is truncated, damaged, or no network of torchswat; the message says what is wrong.

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8), classes=list("0123456789"))
        >>> len(Package.read(path).about.classes)
        10
        """
        arrays, metadata = container.read(path, _description)
        try:
            return cls._checked(arrays, metadata)
        except InvalidData as error:
            raise InvalidData(f"{path}: {error}") from None

    @classmethod
    def _checked(cls, arrays: Arrays, metadata: dict[str, str]) -> Package:
        header = _description(metadata)
        missing = sorted(_FIELDS - set(header))
        if missing:
            raise InvalidData(f"the description of the network lacks {', '.join(missing)}")
        graph = Graph.from_json(header["network"])
        about = _about(header, graph.input_shape[0])
        if header.pop("crc32") != _checksum(header, arrays):
            raise InvalidData("the file is damaged: its checksum does not match")
        forms = _forms(header["tensors"], arrays)
        outputs = list(graph.shapes({name: shape for name, (_, shape) in forms.items()}).values())[-1]
        if about.classes and outputs != (len(about.classes),):
            raise InvalidData(
                f"{len(about.classes)} classes are named, but the outputs are of shape {outputs}"
            )
        tensors = {}
        for name, (form, shape) in forms.items():
            parts = {part: arrays[f"{name}/{part}"] for part in sparse.FORMS[form]}
            tensors[name] = sparse.unpack(form, shape, parts, f"tensor {name!r:.80}")
        return cls(graph, tensors, about)


def _description(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the description of a network, of this format, from the metadata of its file."""
    if KEY not in metadata:
        raise InvalidData(
            "this is a safetensors file but no network of torchswat; `torchswat export` makes them"
        )
    header = container.parse_json(metadata[KEY], "the description of the network")
    if header.get("format") != FORMAT:
        raise InvalidData(
            f"the format is {header.get('format')!r:.60}; this version reads {FORMAT!r}, which "
            "`torchswat export` makes of a run or a checkpoint"
        )
    return header


_FIELDS = {"network", "tensors", "classes", "mean", "std", "resize", "provenance", "crc32"}


def _about(header: dict[str, Any], channels: int) -> About:
    classes, mean, std, resize = (header[key] for key in ("classes", "mean", "std", "resize"))
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InvalidData("the classes must be a list of names")
    for key, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list) or not all(type(each) in (int, float) for each in values):
            raise InvalidData(f"{key} must be a list of numbers")
        if len(values) not in (0, channels):
            raise InvalidData(f"{key} has {len(values)} numbers for {channels} colours")
        if not all(abs(each) < 1e6 for each in values):
            raise InvalidData(f"{key} has the number {max(values, key=abs)!r:.40}, far from any pixel's")
    if len(mean) != len(std) or not all(each > 0 for each in std):
        raise InvalidData("there must be a std for every mean, each more than 0")
    if type(resize) is not int or not 0 <= resize <= 2**16:
        raise InvalidData(f"resize is {resize!r:.40}; allowed is 0 to {2**16} pixels")
    if not isinstance(header["provenance"], dict):
        raise InvalidData("the provenance must be an object")
    return About(
        tuple(classes), tuple(map(float, mean)), tuple(map(float, std)), resize, header["provenance"]
    )


def _forms(values: Any, arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the form and shape of every tensor, and check that the arrays are exactly theirs."""
    if not isinstance(values, dict):
        raise InvalidData("the tensors must be an object of forms and shapes by name")
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    needed: set[str] = set()
    for name, entry in values.items():
        if not isinstance(entry, dict) or set(entry) != {"form", "shape"}:
            raise InvalidData(f"tensor {name!r:.80}: a form and a shape are wanted, not {entry!r:.80}")
        form, shape = entry["form"], entry["shape"]
        if not isinstance(form, str) or form not in sparse.FORMS:
            raise InvalidData(
                f"tensor {name!r:.80}: the form {form!r:.40} is none of {', '.join(sparse.FORMS)}"
            )
        if not container.is_sizes(shape) or not 0 < len(shape) <= 4 or not all(shape):
            raise InvalidData(f"tensor {name!r:.80}: the shape {shape!r:.80} is not allowed")
        forms[name] = form, tuple(shape)
        needed |= {f"{name}/{part}" for part in sparse.FORMS[form]}
    odd = sorted(needed ^ set(arrays))
    if odd:
        raise InvalidData(
            f"the array {odd[0]!r:.80} is on one side only, of the list of tensors and of the data"
        )
    return forms


def _checksum(header: dict[str, Any], arrays: Arrays) -> int:
    """CRC-32 over the description and over name, type, shape and bytes of every array."""
    checksum = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        checksum = zlib.crc32(
            f"{name} {array.dtype.name} {array.shape}".encode("utf-8", "surrogatepass"), checksum
        )
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
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
        are never left out, as DSG's are. It is read by `torch.fx`, so its flow may not depend on data, and
        must be made of convolutions without groups and dilation, batch norm, ReLU, sums, concatenations,
        pooling and linear layers, as the networks of `torchswat.models` are.
    path : str or path
        Of the file, by custom ``.safetensors``.
    input_shape : sequence of int, default (3, 32, 32)
        Channels, height and width of the images that it is made for.
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
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and 0 < size <= 2**16 for size in shape):
        raise InvalidValue(f"input_shape is {input_shape!r}; allowed is (channels, height, width)")
    graph, tensors = trace(model, shape)
    about = About(tuple(classes), tuple(mean), tuple(std), resize, dict(provenance or {}))
    try:
        content = Package(graph, tensors, about).to_bytes()
        Package._checked(*container.from_bytes(content, "the network"))  # whatever is written can be read
    except (InvalidData, TypeError, ValueError) as error:
        raise InvalidValue(f"this network cannot be saved: {error}") from None
    write_atomically(Path(path), content)
