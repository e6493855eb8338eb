"""Reading and writing safetensors files; what a file says is checked before it is used.

    8 bytes   length of the header, little endian
    header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__" of strings
    data      the tensors, one after the other without gaps

Any tool that knows safetensors reads what is written here. The reader takes the tensor types of a network's
file only, and no more memory than the file has bytes: every length and offset is checked against it first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from torchswat.errors import InvalidData, MissingData

TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "BOOL": np.dtype("?"),
}
LONGEST_HEADER = 16 * 2**20  # bytes
_NAMES = {dtype: name for name, dtype in TYPES.items()}

Arrays = dict[str, np.ndarray]
Check = Callable[[dict[str, str]], object]


def to_bytes(arrays: Arrays, metadata: dict[str, str]) -> bytes:
    """Return a safetensors file of `arrays`, whose types are among `TYPES`, and of `metadata`.

    Examples
    --------
    >>> arrays, metadata = from_bytes(to_bytes({"a": np.ones(3, np.float32)}, {"by": "me"}), "here")
    >>> arrays["a"].tolist(), metadata
    ([1.0, 1.0, 1.0], {'by': 'me'})
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    # The widest entries first, so that every tensor begins at a multiple of the size of its own.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        parts.append(np.ascontiguousarray(array).tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def read(path: Path, check: Check = lambda metadata: None) -> tuple[Arrays, dict[str, str]]:
    """Return the tensors and the metadata of the safetensors file at `path`.

    `check` sees the metadata before the tensors are looked at, and raises `InvalidData` where they belong to
    another kind of file.

    Raises
    ------
    MissingData
        There is no such file.
    InvalidData
        The file is damaged, truncated or not what a safetensors file may be.
    """
    if path.is_dir():
        raise MissingData(
            f"{path} is a folder; expected is a safetensors file, as `torchswat export` writes it"
        )
    if not path.is_file():
        raise MissingData(f"there is no file {path}")
    return from_bytes(path.read_bytes(), str(path), check)


def from_bytes(
    content: bytes, origin: str, check: Check = lambda metadata: None
) -> tuple[Arrays, dict[str, str]]:
    """Return the tensors (read-only) and the metadata in `content`; `origin` names it in errors."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(LONGEST_HEADER, len(content) - 8):
        raise InvalidData(
            f"{origin} is truncated or no safetensors file: it has {len(content)} bytes, of which it says "
            f"that {length} are its header"
        )
    header = parse_json(content[8 : 8 + length], f"the header of {origin}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InvalidData(f"{origin}: the metadata must map names to text")
    try:
        check(metadata)
    except InvalidData as error:
        raise InvalidData(f"{origin}: {error}") from None
    data = memoryview(content)[8 + length :]
    arrays, spans = {}, []
    for name, entry in header.items():
        arrays[name], span = _array(entry, data, f"{origin}: tensor {name!r:.80}")
        spans.append(span)
    # Without gaps and overlaps: what is not named in the header is not there, and nothing is there twice.
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise InvalidData(f"{origin}: the tensors overlap or leave a gap at byte {min(begin, at)}")
        at = end
    if at != len(data):
        raise InvalidData(f"{origin}: the tensors have {at} bytes, but {len(data)} are there")
    return arrays, metadata


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """Return the JSON object in `text`; numbers that are not finite are none of JSON's."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidData(f"{what} must be a JSON object, not {value!r:.60}")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _array(entry: Any, data: memoryview, what: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the tensor that an entry of the header describes, and which bytes it takes."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidData(f"{what}: dtype, shape and data_offsets are expected, not {entry!r:.80}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in TYPES:
        raise InvalidData(f"{what}: the dtype {entry['dtype']!r:.40} is none of {', '.join(TYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not is_sizes(shape) or len(shape) > 8:
        raise InvalidData(f"{what}: the shape {shape!r:.80} is not a short list of sizes")
    if not is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= len(data):
        raise InvalidData(f"{what}: the offsets {offsets!r:.80} lie outside of the {len(data)} bytes of data")
    begin, end = offsets
    dtype = TYPES[entry["dtype"]]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise InvalidData(
            f"{what}: the shape {shape!r:.80} of {entry['dtype']} needs other than {end - begin} bytes"
        )
    return np.frombuffer(data[begin:end], dtype).reshape(shape), (begin, end)


def is_sizes(value: Any) -> bool:
    """Return whether `value` is a list of whole numbers from 0 to 2**40."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= 2**40 for size in value)
