"""Layout conversions are permutations, bit for bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import CACHED_FLOATS, DTYPES, chwn, empty_chwn, kernel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))


def check_there_and_back(
    native: ModuleType,
    size: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
    dtype: torch.dtype,
    more: int = 0,
) -> None:
    n, c, h, w = size
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c + more, h, w).to(dtype, memory_format=form)[:, more:]
    stride = c + more if channels_last else (c + more) * h * w
    other = "channels_last" if channels_last else "nchw"
    there, back = (kernel(native, name, dtype) for name in (f"{other}_to_chwn", f"chwn_to_{other}"))
    found = empty_chwn(size, dtype)
    there(x.data_ptr(), stride, found.data_ptr(), *size, threads)
    assert torch.equal(found, x)
    again = torch.empty(size, dtype=dtype, memory_format=form)
    source = chwn(x)
    back(source.data_ptr(), again.data_ptr(), *size, threads)
    assert torch.equal(again, x)


@fast
@given(
    size=sizes,
    channels_last=st.booleans(),
    threads=st.integers(1, 3),
    more=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
)
@example(size=(128, 64, 4, 4), channels_last=False, threads=2, more=0, dtype=torch.float32)
@example(size=(16, 128, 5, 3), channels_last=True, threads=1, more=0, dtype=torch.float32)
@example(size=(1, 1, 1, 1), channels_last=True, threads=1, more=0, dtype=torch.float32)
@example(size=(128, 70, 4, 4), channels_last=False, threads=2, more=0, dtype=torch.bfloat16)
@example(size=(33, 128, 5, 3), channels_last=True, threads=1, more=1, dtype=torch.bfloat16)
@example(size=(70, 999, 1, 1), channels_last=False, threads=2, more=0, dtype=torch.bfloat16)  # a matrix
def test_there_and_back(
    native: ModuleType,
    size: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
    more: int,
    dtype: torch.dtype,
) -> None:
    check_there_and_back(native, size, channels_last, threads, dtype, more)


@pytest.mark.parametrize("size", [(32, 48, 40, 40), (24, 64, 41, 40)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_beyond_the_cache(
    native: ModuleType, size: tuple[int, int, int, int], channels_last: bool, dtype: torch.dtype
) -> None:
    size = (size[0], size[1] * 4 // dtype.itemsize, *size[2:])
    assert torch.Size(size).numel() * dtype.itemsize > 4 * CACHED_FLOATS
    check_there_and_back(native, size, channels_last, 2, dtype)


@pytest.mark.parametrize("pattern", [0x7FC12345, 0x80000000, 0x00000001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_travel_unchanged(native: ModuleType, pattern: int, dtype: torch.dtype) -> None:
    size, integer = (43, 3, 7, 5), torch.int32 if dtype == torch.float32 else torch.int16
    pattern >>= 32 - 8 * dtype.itemsize
    bits = torch.full(
        size, pattern - (pattern >> 8 * dtype.itemsize - 1 << 8 * dtype.itemsize), dtype=integer
    )
    found = torch.empty(3, 7, 5, 43, dtype=integer)
    kernel(native, "nchw_to_chwn", dtype)(bits.data_ptr(), 3 * 7 * 5, found.data_ptr(), *size, 1)
    assert (found == bits[0, 0, 0, 0]).all()
