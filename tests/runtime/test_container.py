"""safetensors files: what we write others read, and whatever comes in is refused or right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from torchswat.errors import InvalidData, MissingData
from torchswat.runtime.container import LONGEST_HEADER, TYPES, from_bytes, read, to_bytes

any_array = st.sampled_from(list(TYPES.values())).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
any_arrays = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "__metadata__"), any_array, max_size=4
)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@given(any_arrays, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_written_is_read(tensors, metadata):
    found, description = from_bytes(to_bytes(tensors, metadata), "it")
    assert description == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def test_others_read_what_is_written_and_the_other_way_round(tmp_path: Path):
    tensors = {
        "b": np.arange(3, dtype=np.uint16),
        "a": np.ones((2, 2), np.float32),
        "c": np.zeros(1, np.uint8),
    }
    theirs = safetensors.numpy.load(to_bytes(tensors, {"who": "me"}))
    assert all(np.array_equal(theirs[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "x").write_bytes(safetensors.numpy.save(tensors, {"who": "me"}))
    found, metadata = read(tmp_path / "x")
    assert metadata == {"who": "me"} and np.array_equal(found["a"], tensors["a"])


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(MissingData, match="no file"):
        read(tmp_path / "x")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        ((2**63).to_bytes(8, "little") + EIGHT, "truncated"),
        ((LONGEST_HEADER + 1).to_bytes(8, "little") + b" " * (LONGEST_HEADER + 9), "truncated or no"),
        (with_header(b"[1]"), "JSON object"),
        (with_header(b"{nonsense"), "valid JSON"),
        (with_header(b"\xff\xfe{}"), "valid JSON"),
        (with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "valid JSON"),
        (with_header(b'{"a": NaN}'), "no number of JSON"),
        (with_header({"__metadata__": {"a": 1}}), "names to text"),
        (with_header({"a": 3}), "are expected"),
        (with_header({"a": {**ENTRY, "more": 1}}, EIGHT), "are expected"),
        (with_header({"a": {**ENTRY, "dtype": "F64"}}, EIGHT), "none of"),
        (with_header({"a": {**ENTRY, "dtype": ["F32"]}}, EIGHT), "none of"),
        (with_header({"a": {**ENTRY, "shape": [-2]}}, EIGHT), "list of sizes"),
        (with_header({"a": {**ENTRY, "shape": [True, 2]}}, EIGHT), "list of sizes"),
        (with_header({"a": {**ENTRY, "shape": [1] * 9}}, EIGHT), "list of sizes"),
        (with_header({"a": {**ENTRY, "shape": [2**40] * 3}}, EIGHT), "needs other than"),
        (with_header({"a": {**ENTRY, "shape": [3]}}, EIGHT), "needs other than 8 bytes"),
        (with_header({"a": {**ENTRY, "data_offsets": [0, 16]}}, EIGHT), "outside of the 8"),
        (with_header({"a": {**ENTRY, "data_offsets": [8, 0]}}, EIGHT), "outside of the 8"),
        (with_header({"a": {**ENTRY, "data_offsets": [0, 4, 8]}}, EIGHT), "outside of the 8"),
        (with_header({"a": ENTRY, "b": ENTRY}, EIGHT), "overlap"),
        (with_header({"a": ENTRY}, EIGHT + b"1"), "8 bytes, but 9"),
        (with_header({"a": {**ENTRY, "data_offsets": [8, 16]}}, EIGHT * 2), "gap at byte 0"),
    ],
)
def test_what_is_refused(content: bytes, words: str):
    with pytest.raises(InvalidData, match=words):
        from_bytes(content, "it")


@given(st.binary(max_size=200))
def test_noise_is_refused(content: bytes):
    with pytest.raises(InvalidData):
        from_bytes(content, "it")
