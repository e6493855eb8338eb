"""Pooling on CHWN memory against torch's, NaN and padding included."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import chwn, empty_chwn
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@fast
@given(
    size=sizes,
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    ties=st.booleans(),
    threads=st.integers(1, 2),
)
@example(size=(128, 2, 8, 8), kernel=2, stride=2, padding=0, ties=False, threads=1)
@example(size=(64, 9, 63, 61), kernel=2, stride=3, padding=1, ties=False, threads=2)  # beyond the cache
@example(size=(17, 3, 7, 7), kernel=3, stride=2, padding=1, ties=True, threads=2)
def test_max_pool(
    native: ModuleType,
    size: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    ties: bool,
    threads: int,
) -> None:
    n, c, h, w = size
    assume(2 * padding <= kernel and min(h, w) + 2 * padding >= kernel)
    x = torch.randn(size, generator=torch.Generator().manual_seed(n))
    x = chwn(x.round() if ties else x).requires_grad_()
    expected = functional.max_pool2d(x, kernel, stride, padding)
    y, winner = empty_chwn(expected.shape), empty_chwn(expected.shape, dtype=torch.uint8)
    geometry = (c, h, w, n, kernel, stride, padding)
    native.max_pool_forward(x.data_ptr(), *geometry, y.data_ptr(), winner.data_ptr(), threads)
    assert torch.equal(y, expected)

    gradient = chwn(torch.randn(expected.shape).round())  # whole numbers: sums are exact in any order
    expected.backward(gradient)
    grad_x = empty_chwn(size)
    native.max_pool_backward(gradient.data_ptr(), winner.data_ptr(), *geometry, grad_x.data_ptr(), threads)
    assert x.grad is not None
    assert torch.equal(grad_x, x.grad)


def test_a_nan_is_not_hidden_by_pooling(native: ModuleType) -> None:
    x = chwn(torch.randn(3, 2, 4, 4))
    x[1, 0, 2, 2] = float("nan")
    y, winner = empty_chwn((3, 2, 2, 2)), empty_chwn((3, 2, 2, 2), dtype=torch.uint8)
    native.max_pool_forward(x.data_ptr(), 2, 4, 4, 3, 2, 2, 0, y.data_ptr(), winner.data_ptr(), 1)
    assert torch.equal(y.isnan(), functional.max_pool2d(x, 2).isnan())


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "message"),
    [
        (0, 1, 0, "kernel"),
        (17, 1, 0, "kernel"),
        (2, 0, 0, "stride"),
        (2, 2, 2, "padding"),
        (5, 1, 0, "larger"),
    ],
)
def test_impossible_windows_are_refused(
    native: ModuleType, kernel: int, stride: int, padding: int, message: str
) -> None:
    x, winner = torch.randn(400), torch.empty(400, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        native.max_pool_forward(
            x.data_ptr(), 1, 4, 4, 1, kernel, stride, padding, x.data_ptr(), winner.data_ptr(), 1
        )


@fast
@given(size=sizes, kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)), threads=st.integers(1, 2))
@example(size=(64, 9, 63, 61), kernel=(2, 2), threads=2)  # beyond the cache
@example(size=(17, 3, 7, 7), kernel=(7, 7), threads=1)
def test_averages(
    native: ModuleType, size: tuple[int, int, int, int], kernel: tuple[int, int], threads: int
) -> None:
    n, c, h, w = size
    assume(kernel[0] <= h and kernel[1] <= w)
    x = chwn(torch.randn(size))
    reference = x.double().requires_grad_()
    expected = functional.avg_pool2d(reference, kernel)
    y, grad_x = empty_chwn(tuple(expected.shape)), empty_chwn(size)
    native.average_forward(x.data_ptr(), c, h, w, n, *kernel, y.data_ptr(), threads)
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-6)
    gradient = chwn(torch.randn(expected.shape))
    expected.backward(gradient.double())
    native.average_backward(gradient.data_ptr(), c, h, w, n, *kernel, grad_x.data_ptr(), threads)
    assert reference.grad is not None
    assert torch.allclose(grad_x.double(), reference.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kernel", "message"), [((0, 1), "at least one"), ((1, 5), "larger")])
def test_impossible_averages_are_refused(native: ModuleType, kernel: tuple[int, int], message: str) -> None:
    x = torch.zeros(16)
    for run in (native.average_forward, native.average_backward):
        with pytest.raises(ValueError, match=message):
            run(x.data_ptr(), 1, 4, 4, 1, *kernel, x.data_ptr(), 1)
