"""A tensor with many zeros as a few short arrays: the kept values, and where they belong.

============  ======================================  ============================  ===================
form          arrays                                  bytes                         good for a density
============  ======================================  ============================  ===================
``dense``     values, float32, of the tensor's shape  4 a weight                    above 0.97
``bits``      values, float32; bits, uint8            4 a kept one, 1/8 a weight    in between
``offsets``   values, float32; offsets, uint16;       6 a kept one, 4 a row         below 0.06
              starts, int32
============  ======================================  ============================  ===================

Weights of int8 take the same forms, with values of one byte.
Bits are of the flattened tensor, the lowest bit of a byte first. Offsets are positions within a row, that is
within ``tensor[i].flatten()``, and rise; those of row i are ``offsets[starts[i]:starts[i + 1]]``.

`unpack` checks every array: what does not fit the shape is refused before a tensor of that shape is made,
and no form is taken whose tensor would have more than 64 entries for a value that is there.
"""

from __future__ import annotations

import math

import numpy as np

from torchswat.errors import InvalidData
from torchswat.runtime.container import Arrays

FLOAT = np.dtype(np.float32)
FORMS: dict[str, tuple[str, ...]] = {
    "dense": ("values",),
    "bits": ("values", "bits"),
    "offsets": ("values", "offsets", "starts"),
}
SPARSE = (FLOAT, np.dtype(np.int8))
"""Types of tensors that may be sparse."""
LONGEST_ROW = 2**16
FEWEST = 16  # entries of a tensor that may be sparse, at least
FEWEST_KEPT = 64  # entries for a kept one, at most, in the form `offsets`


def pack(tensor: np.ndarray) -> tuple[str, Arrays]:
    """Return the smallest form of a `tensor` and its arrays.

    Other types than float32 and int8, and tensors of few entries, stay dense.

    Examples
    --------
    >>> form, arrays = pack(np.array([[0, 2, 0, 0, 0, 0, 0, 0, 0, 3]] * 2, np.float32))
    >>> form, arrays["values"].tolist(), arrays["bits"].tolist()
    ('bits', [2.0, 3.0, 2.0, 3.0], [2, 10, 8])
    """
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if tensor.dtype not in SPARSE or tensor.size <= FEWEST or not np.isfinite(flat).all():
        return "dense", {"values": flat.reshape(tensor.shape)}
    kept = flat != 0
    values = flat[kept]
    forms = {"dense": flat.nbytes, "bits": values.nbytes + -(-flat.size // 8)}
    rows = tensor.shape[0] if tensor.ndim else 0
    if 0 < flat.size <= min(rows * LONGEST_ROW, values.size * FEWEST_KEPT):
        forms["offsets"] = values.nbytes + values.size * 2 + 4 * (rows + 1)
    form = min(forms, key=lambda name: forms[name])
    if form == "dense":
        return form, {"values": np.ascontiguousarray(tensor)}
    if form == "bits":
        return form, {"values": values, "bits": np.packbits(kept, bitorder="little")}
    by_row = kept.reshape(rows, -1)
    starts = np.concatenate([[0], by_row.sum(1).cumsum()]).astype(np.int32)
    return form, {"values": values, "offsets": by_row.nonzero()[1].astype(np.uint16), "starts": starts}


def unpack(
    form: str, shape: tuple[int, ...], arrays: Arrays, what: str, dtype: np.dtype = FLOAT
) -> np.ndarray:
    """Return the dense tensor of `shape` and `dtype`; `what` names it in errors.

    Raises
    ------
    InvalidData
        The arrays are not those of such a tensor, or a value is NaN, or infinite in a sparse form.
    """
    values = arrays["values"]
    if values.dtype != dtype or (form != "dense" and dtype not in SPARSE):
        raise InvalidData(f"{what}: the values are {values.dtype}; in the form {form} they must be {dtype}")
    if dtype == np.float32 and (np.isnan(values).any() if form == "dense" else not np.isfinite(values).all()):
        raise InvalidData(f"{what}: the values must be finite float32 numbers")
    if dtype == np.bool_ and (values.view(np.uint8) > 1).any():
        raise InvalidData(f"{what}: the values must be 0 or 1")
    if form == "dense":
        if values.shape != shape:
            raise InvalidData(f"{what}: the values have the shape {values.shape}, not {shape}")
        return values.copy()
    if values.ndim != 1:
        raise InvalidData(f"{what}: the kept values must be one row, not of shape {values.shape}")
    at = {"bits": _kept_bits, "offsets": _kept_offsets}[form](shape, arrays, what)
    dense = np.zeros(math.prod(shape), dtype)
    dense[at] = values
    return dense.reshape(shape)


def _kept_bits(shape: tuple[int, ...], arrays: Arrays, what: str) -> np.ndarray:
    size, bits = math.prod(shape), arrays["bits"]
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise InvalidData(f"{what}: {bits.nbytes} bytes of bits do not fit the shape {shape}")
    kept = np.unpackbits(bits, bitorder="little").view(bool)
    count, expected = int(kept.sum()), arrays["values"].size
    if kept[size:].any() or count != expected:
        raise InvalidData(f"{what}: {count} bits are set for {expected} values")
    return kept[:size]


def _kept_offsets(shape: tuple[int, ...], arrays: Arrays, what: str) -> np.ndarray:
    size, count = math.prod(shape), arrays["values"].size
    rows, offsets, starts = shape[0] if shape else 0, arrays["offsets"], arrays["starts"]
    if not 0 < size <= min(rows * LONGEST_ROW, count * FEWEST_KEPT):
        raise InvalidData(f"{what}: the shape {shape} is too large for {count} values kept by offsets")
    if offsets.dtype != np.uint16 or offsets.shape != (count,):
        raise InvalidData(f"{what}: {offsets.size} offsets do not fit {count} values")
    if starts.dtype != np.int32 or starts.shape != (rows + 1,):
        raise InvalidData(f"{what}: {starts.size} starts do not fit {rows} rows")
    lengths = np.diff(starts.astype(np.int64))
    if starts[0] != 0 or starts[-1] != count or (lengths < 0).any():
        raise InvalidData(f"{what}: the starts of the rows do not rise from 0 to {count}")
    at = np.repeat(np.arange(rows), lengths) * (size // rows) + offsets
    if count and (int(offsets.max()) >= size // rows or (np.diff(at) <= 0).any()):
        raise InvalidData(f"{what}: the offsets do not rise within rows of {size // rows} weights")
    return at
