"""Layout conversions are permutations, bit for bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import CACHED_FLOATS, chwn, empty_chwn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))


def check_there_and_back(
    native: ModuleType, size: tuple[int, int, int, int], channels_last: bool, threads: int, more: int = 0
) -> None:
    n, c, h, w = size
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c + more, h, w).to(memory_format=form)[:, more:]
    stride = c + more if channels_last else (c + more) * h * w
    there, back = (
        (native.channels_last_to_chwn, native.chwn_to_channels_last)
        if channels_last
        else (native.nchw_to_chwn, native.chwn_to_nchw)
    )
    found = empty_chwn(size)
    there(x.data_ptr(), stride, found.data_ptr(), *size, threads)
    assert torch.equal(found, x)
    again = torch.empty(size, memory_format=form)
    source = chwn(x)
    back(source.data_ptr(), again.data_ptr(), *size, threads)
    assert torch.equal(again, x)


@fast
@given(size=sizes, channels_last=st.booleans(), threads=st.integers(1, 3), more=st.integers(0, 3))
@example(size=(128, 64, 4, 4), channels_last=False, threads=2, more=0)
@example(size=(16, 128, 5, 3), channels_last=True, threads=1, more=0)
@example(size=(1, 1, 1, 1), channels_last=True, threads=1, more=0)
def test_there_and_back(
    native: ModuleType, size: tuple[int, int, int, int], channels_last: bool, threads: int, more: int
) -> None:
    check_there_and_back(native, size, channels_last, threads, more)


@pytest.mark.parametrize("size", [(32, 48, 40, 40), (24, 64, 41, 40)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_beyond_the_cache(
    native: ModuleType, size: tuple[int, int, int, int], channels_last: bool
) -> None:
    assert torch.Size(size).numel() > CACHED_FLOATS
    check_there_and_back(native, size, channels_last, 2)


@pytest.mark.parametrize("pattern", [0x7FC12345, 0x80000000, 0x00000001])
def test_bits_travel_unchanged(native: ModuleType, pattern: int) -> None:
    size = (19, 3, 7, 5)
    bits = torch.full(size, pattern - (1 << 32) if pattern >> 31 else pattern, dtype=torch.int32)
    found = torch.empty(3, 7, 5, 19, dtype=torch.int32)
    native.nchw_to_chwn(bits.data_ptr(), 3 * 7 * 5, found.data_ptr(), *size, 1)
    assert (found == bits[0, 0, 0, 0]).all()
