"""Sparse forms of a tensor: the smallest is taken, and it gives back every bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from torchswat.errors import InvalidData
from torchswat.runtime.sparse import FORMS, pack, unpack


@given(arrays.array_shapes(min_dims=1, max_dims=4, max_side=9), st.floats(0, 1), st.integers(0, 1000))
def test_every_byte_comes_back(shape, density, seed):
    draw = np.random.default_rng(seed)
    tensor = (draw.integers(-128, 128, shape) * (draw.random(shape) < density)).astype(np.int8)
    form, parts = pack(tensor)
    assert sum(part.nbytes for part in parts.values()) <= tensor.nbytes
    assert np.array_equal(unpack(form, shape, parts, "it", np.dtype(np.int8)), tensor)


def test_bytes_that_are_refused():
    int8, three = np.dtype(np.int8), np.ones(3, np.int8)
    offsets = {"offsets": np.array([1, 4, 7], np.uint16), "starts": np.array([0, 2, 3], np.int32)}
    bits = {"bits": np.array([0b10010, 0b10000000], np.uint8)}
    assert unpack("bits", (2, 8), {"values": three, **bits}, "it", int8).sum() == 3
    assert unpack("offsets", (2, 8), {"values": three, **offsets}, "it", int8).sum() == 3
    for form, parts, words in (
        ("bits", {"values": np.ones(3, np.float32), **bits}, "must be int8"),
        ("bits", {"values": np.ones(4, np.int8), **bits}, "bits are set"),
        ("bits", {"values": three, "bits": bits["bits"][:1]}, "do not fit"),
        ("offsets", {"values": three, **offsets, "offsets": np.array([1, 4, 8], np.uint16)}, "do not rise"),
        ("offsets", {"values": three, **offsets, "starts": np.array([0, 2, 4], np.int32)}, "do not rise"),
        ("dense", {"values": np.ones((2, 7), np.int8)}, "have the shape"),
    ):
        with pytest.raises(InvalidData, match=words):
            unpack(form, (2, 8), parts, "it", int8)
    with pytest.raises(InvalidData, match="in the form bits"):
        unpack("bits", (2, 8), {"values": np.ones(3, np.uint8), **bits}, "it", np.dtype(np.uint8))


def tensor_of(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=shape) * (draw.random(shape) < density)).astype(np.float32)


@given(
    arrays.array_shapes(min_dims=1, max_dims=4, max_side=9),
    st.sampled_from((0.0, 0.01, 0.03, 0.1, 0.5, 0.97, 1.0)),
    st.integers(0, 1000),
)
def test_every_bit_comes_back(shape, density, seed):
    tensor = tensor_of(shape, density, seed)
    form, parts = pack(tensor)
    assert set(parts) == set(FORMS[form])
    assert np.array_equal(unpack(form, shape, parts, "it"), tensor)


@pytest.mark.parametrize(
    ("density", "form"), [(1.0, "dense"), (0.5, "bits"), (0.2, "bits"), (0.03, "offsets")]
)
def test_the_smallest_form_is_taken(density: float, form: str):
    found, parts = pack(tensor_of((64, 64, 3, 3), density))
    assert found == form
    size = sum(part.nbytes for part in parts.values())
    assert (
        size
        <= 64 * 64 * 9 * {"dense": 4, "bits": 4.1 * density + 0.13, "offsets": 6.2 * density + 0.02}[form]
    )


def test_four_times_smaller_at_a_sparsity_of_0_8():
    tensor = tensor_of((128, 128, 3, 3), 0.2)
    assert sum(part.nbytes for part in pack(tensor)[1].values()) * 4.2 < tensor.nbytes


def refused(form: str, shape: tuple[int, ...], words: str, **changes: np.ndarray) -> None:
    """Change one of the arrays of a good tensor, of shape (2, 8), and expect a complaint."""
    tensor = np.zeros((2, 8), np.float32)
    tensor[0, 1] = tensor[0, 4] = tensor[1, 7] = 1
    parts = {
        "dense": {"values": tensor},
        "bits": {"values": np.ones(3, np.float32), "bits": np.packbits(tensor != 0, bitorder="little")},
        "offsets": {
            "values": np.ones(3, np.float32),
            "offsets": np.array([1, 4, 7], np.uint16),
            "starts": np.array([0, 2, 3], np.int32),
        },
    }[form]
    assert np.array_equal(unpack(form, (2, 8), parts, "it"), tensor)
    with pytest.raises(InvalidData, match=words):
        unpack(form, shape, {**parts, **changes}, "it")


def test_what_is_refused():
    three = np.ones(3, np.float32)
    refused("dense", (2, 9), "have the shape")
    refused("dense", (2, 8), "finite", values=np.full((2, 8), np.nan, np.float32))
    refused("bits", (2, 8), "finite", values=np.array([1, np.inf, 1], np.float32))
    refused("bits", (2, 8), "must be float32", values=np.ones(3, np.uint8))
    refused("bits", (2, 8), "one row", values=three.reshape(3, 1))
    refused("bits", (2, 8), "3 bits are set for 4", values=np.ones(4, np.float32))
    refused("bits", (2, 9), "do not fit the shape")
    refused("bits", (2, 7), "bits are set")  # beyond the end
    refused("bits", (2**40, 2**40), "do not fit the shape")
    refused("offsets", (2, 2**30), "too large")
    refused("offsets", (2, 8), "do not fit 3 values", offsets=np.ones(2, np.uint16))
    refused("offsets", (3, 8), "do not fit 3 rows")
    refused("offsets", (2, 8), "do not rise from", starts=np.array([0, 3, 2], np.int32))
    refused("offsets", (2, 8), "do not rise from", starts=np.array([0, 4, 3], np.int32))
    refused("offsets", (2, 8), "do not rise from", starts=np.array([-1, 2, 3], np.int32))
    refused("offsets", (2, 8), "within rows of 8", offsets=np.array([1, 8, 2], np.uint16))
    refused("offsets", (2, 8), "within rows of 8", offsets=np.array([4, 4, 7], np.uint16))
    refused("offsets", (2, 8), "within rows of 8", offsets=np.array([4, 1, 7], np.uint16))
