"""Activations as they are saved for backward: both formats against dense tensors, and damaged bytes."""

# pyright: reportArgumentType=false

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operations import BODIES, body

from torchswat.engine import layout, saved
from torchswat.engine.loader import native_for
from torchswat.errors import InvalidValue

sizes = st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
LAYOUTS = "plain", "channels last", "chwn", "gapped", "turned"


def laid_out(x: torch.Tensor, how: str) -> torch.Tensor:
    n, c, h, w = x.shape
    return {
        "plain": lambda: x,
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "chwn": lambda: layout.copy_to_chwn(x),
        "gapped": lambda: x.new_empty(n, c, h, 2 * w)[..., ::2].copy_(x),
        "turned": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
    }[how]()


@pytest.mark.parametrize("which", BODIES)
@given(
    *(sizes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.booleans(), st.booleans()),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_flat_format_is_read_into_the_layout_it_came_from(which, size, how, of_mask, masked, room, dtype):
    x = laid_out(torch.randn(size).relu().to(dtype), how)
    mask = x >= 0.5
    given_mask = laid_out(mask, of_mask) if masked else None
    expected = torch.where(mask, x, 0)
    with body(which):
        buffer, count = saved.keep_flat(native_for(x), x, given_mask, 0.5, x.numel() if room else -1)
        assert count == int(mask.count_nonzero())
        exact = saved.flat_bytes(x.numel(), x.numel() if room else count, x.element_size())
        assert buffer.numel() == exact and buffer.dtype is torch.uint8
        assert saved.is_whole(buffer, size, False, x.element_size(), None)
        restored = saved.restore_flat(native_for(x), buffer, layout.empty_in(layout.layout_of(x), size, x))
    assert torch.equal(restored, expected)


@pytest.mark.parametrize("which", BODIES[1:])
@given(sizes, st.booleans(), st.booleans())
def test_the_chwn_format_expands_to_what_was_kept(which, size, masked, room):
    x = layout.copy_to_chwn(torch.randn(size).relu())
    mask = x >= 0.5
    with body(which):
        native = native_for(x)
        buffer, count, nan = saved.compress(
            native, x, mask if masked else None, 0.5, x.numel() if room else -1
        )
        assert saved.is_whole(buffer, size, True, 4, native)
        restored = saved.expand(native, buffer, size, x)
    assert count == int(mask.count_nonzero()) and not nan
    assert buffer.numel() == saved.chwn_bytes(size, x.numel() if room else count)
    assert layout.is_chwn(restored) and torch.equal(restored, torch.where(mask, x, 0))


@pytest.mark.parametrize("which", BODIES[1:])
@given(sizes, st.integers(0, 10_000), st.integers(0, 255), st.data())
def test_damaged_bytes_of_the_chwn_format_are_found_or_harmless(which, size, at, byte, data):
    """What is called whole is read without leaving the buffer (the sanitizers look on)."""
    x = layout.copy_to_chwn(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    with body(which):
        native = native_for(x)
        buffer, *_ = saved.compress(native, x, None, 0.5, -1)
        buffer[at % buffer.numel()] = byte
        buffer = (
            buffer[: data.draw(st.integers(0, buffer.numel()))].clone()
            if data.draw(st.booleans())
            else buffer
        )
        if saved.is_whole(buffer, size, True, 4, native):
            assert saved.expand(native, buffer, size, x).shape == torch.Size(size)


@given(sizes, st.integers(1, 8))
def test_a_flat_buffer_that_is_too_short_is_not_whole(size, missing):
    x = torch.randn(size)
    buffer, _ = saved.keep_flat(native_for(x), x, None, 0.0, -1)
    assert saved.is_whole(buffer, size, False, 4, None)
    assert not saved.is_whole(buffer[:-missing], size, False, 4, None)


@pytest.mark.parametrize("which", BODIES)
def test_no_room_is_an_error_with_words(which):
    with (
        body(which),
        pytest.raises(InvalidValue, match="24 values of the activation are kept, and there is room for 5"),
    ):
        saved.keep_flat(native_for(torch.ones(1)), torch.ones(1, 2, 3, 4), None, 0.5, 5)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_what_they_were_packed_from(marks):
    bits = saved.pack_bits(torch.tensor(marks))
    assert saved.unpack_bits(bits, len(marks)).tolist() == marks
