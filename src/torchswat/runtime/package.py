"""A trained network in one file: sparse weights, operations, and all that is needed to give it an image.

The format is described in docs/format.md. Reading one executes nothing that stands in it.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchswat.errors import InvalidData
from torchswat.runtime import container, sparse, version1
from torchswat.runtime.container import Arrays
from torchswat.runtime.graph import Graph
from torchswat.runtime.infer import constant, infer
from torchswat.runtime.operations.rows import MOST_DIMENSIONS, TYPES, Shape, Value

FORMAT = "torchswat network 2"
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
    """The content of a network's file.

    Attributes
    ----------
    graph : Graph
        The operations.
    tensors : dict of str to ndarray
        Dense weights and constants by name.
    about : About
        Names, normalisation, provenance.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
    >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> "Conv" in {node.operation for node in Package.read(path).graph.nodes}
    True
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
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> Package.read(path).to_bytes() == path.read_bytes()
        True
        """
        arrays: Arrays = {}
        forms: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            form, parts = sparse.pack(tensor)
            forms[name] = {"form": form, "shape": list(tensor.shape), "dtype": tensor.dtype.name}
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
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8), resize=9)
        >>> Package.read(path).about.resize
        9
        """
        arrays, metadata = container.read(path, _description)
        try:
            return cls.checked(arrays, metadata)
        except InvalidData as error:
            raise InvalidData(f"{path}: {error}") from None

    @classmethod
    def checked(cls, arrays: Arrays, metadata: dict[str, str]) -> Package:
        """Return what arrays and metadata of a file hold.

        Parameters
        ----------
        arrays : dict of str to ndarray
            Of the file.
        metadata : dict of str to str
            Of the file.

        Returns
        -------
        Package

        Raises
        ------
        InvalidData
            Something does not fit.

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> Package.checked(*container.read(path)).graph.input_shape
        (1, 8, 8)
        """
        header = _description(metadata)
        missing = sorted(_FIELDS - set(header))
        if missing:
            raise InvalidData(f"the description of the network lacks {', '.join(missing)}")
        is_old = header["format"] == version1.FORMAT
        forms = _forms(header["tensors"], arrays, is_old)
        constants: Arrays = {}
        if is_old:
            shapes = {name: shape for name, (_, shape, _) in forms.items()}
            graph, constants = version1.convert(header["network"], shapes)
        else:
            graph = Graph.from_json(header["network"], list(forms))
        about = _about(header, graph)
        if header.pop("crc32") != _checksum(header, arrays):
            raise InvalidData("the file is damaged: its checksum does not match")
        claims = {name: _claim(name, *form, arrays) for name, form in forms.items()}
        claims |= {name: constant(tensor) for name, tensor in constants.items()}
        values = infer(graph, claims, graph.examples)
        made = values[graph.outputs[0]].shape[1:]
        if about.classes and made != (len(about.classes),):
            raise InvalidData(f"{len(about.classes)} classes are named, but the outputs are of shape {made}")
        tensors: Arrays = {}
        for name, (form, shape, dtype) in forms.items():
            parts = {part: arrays[f"{name}/{part}"] for part in sparse.FORMS[form]}
            tensors[name] = sparse.unpack(form, shape, parts, f"tensor {name!r:.80}", dtype)
        return cls(graph, tensors | constants, about)

    def output_shapes(self) -> list[Shape]:
        """Return the shape of each output, for inputs of the sizes that the network was made for.

        Returns
        -------
        list of tuple of int
            The number of images first.

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> Package.read(path).output_shapes()[0][1:]
        (10,)
        """
        tensors = {name: constant(tensor) for name, tensor in self.tensors.items()}
        values = infer(self.graph, tensors, self.graph.examples)
        return [values[name].shape for name in self.graph.outputs]


def _claim(name: str, form: str, shape: Shape, dtype: np.dtype, arrays: Arrays) -> Value:
    """Return the declared shape and type of a tensor before it is unpacked; sizes are always dense."""
    if form != "dense":
        return Value(shape, dtype)
    array = arrays[f"{name}/values"]
    if array.shape != shape or array.dtype != dtype:
        raise InvalidData(f"tensor {name!r:.80}: the values have the shape {array.shape}, not {shape}")
    return constant(array)


def _description(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the description of a network, of this format, from the metadata of its file."""
    if KEY not in metadata:
        raise InvalidData(
            "this is a safetensors file but no network of torchswat; `torchswat export` makes them"
        )
    header = container.parse_json(metadata[KEY], "the description of the network")
    if header.get("format") not in (FORMAT, version1.FORMAT):
        raise InvalidData(
            f"the format is {header.get('format')!r:.60}; this version reads {FORMAT!r} and the one before, "
            "which `torchswat export` makes of a run or a checkpoint"
        )
    return header


_FIELDS = {"network", "tensors", "classes", "mean", "std", "resize", "provenance", "crc32"}


def _about(header: dict[str, Any], graph: Graph) -> About:
    channels = graph.inputs[0].example[1] if len(graph.inputs[0].example) > 1 else 0
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


def _forms(values: Any, arrays: Arrays, is_old: bool) -> dict[str, tuple[str, Shape, np.dtype]]:
    """Return form, shape and type of every tensor, and check that the arrays are exactly theirs."""
    if not isinstance(values, dict):
        raise InvalidData("the tensors must be an object of forms and shapes by name")
    forms: dict[str, tuple[str, Shape, np.dtype]] = {}
    needed: set[str] = set()
    for name, entry in values.items():
        if is_old and isinstance(entry, dict):
            entry = {"dtype": "float32", **entry}
        if not isinstance(entry, dict) or set(entry) != {"form", "shape", "dtype"}:
            raise InvalidData(f"tensor {name!r:.80}: a form, shape and dtype are expected, not {entry!r:.80}")
        form, shape, dtype = entry["form"], entry["shape"], entry["dtype"]
        if not isinstance(form, str) or form not in sparse.FORMS:
            raise InvalidData(
                f"tensor {name!r:.80}: the form {form!r:.40} is none of {', '.join(sparse.FORMS)}"
            )
        if (
            not isinstance(dtype, str)
            or dtype not in TYPES
            or (form != "dense" and TYPES[dtype] not in sparse.SPARSE)
        ):
            raise InvalidData(
                f"tensor {name!r:.80}: the dtype {dtype!r:.40} is not allowed in the form {form}"
            )
        if not container.is_sizes(shape) or len(shape) > MOST_DIMENSIONS or (form != "dense" and not shape):
            raise InvalidData(f"tensor {name!r:.80}: the shape {shape!r:.80} is not allowed")
        sizes: Shape = tuple(map(int, shape))
        forms[name] = form, sizes, TYPES[dtype]
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
