"""Pooling on CHWN memory against torch's, NaN and padding included."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import DTYPES, chwn, empty_chwn, kernel, rounding
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@fast
@given(
    size=sizes,
    window=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    ties=st.booleans(),
    threads=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES),
)
@example(size=(128, 2, 8, 8), window=2, stride=2, padding=0, ties=False, threads=1, dtype=torch.float32)
@example(size=(64, 9, 63, 61), window=2, stride=3, padding=1, ties=False, threads=2, dtype=torch.float32)
@example(size=(64, 18, 63, 61), window=2, stride=3, padding=1, ties=False, threads=2, dtype=torch.bfloat16)
@example(size=(17, 3, 7, 7), window=3, stride=2, padding=1, ties=True, threads=2, dtype=torch.float32)
@example(size=(70, 3, 7, 7), window=3, stride=2, padding=1, ties=True, threads=2, dtype=torch.bfloat16)
def test_max_pool(
    native: ModuleType,
    size: tuple[int, int, int, int],
    window: int,
    stride: int,
    padding: int,
    ties: bool,
    threads: int,
    dtype: torch.dtype,
) -> None:
    n, c, h, w = size
    assume(2 * padding <= window and min(h, w) + 2 * padding >= window)
    x = torch.randn(size, generator=torch.Generator().manual_seed(n)).to(dtype)
    x = chwn(x.round() if ties else x)
    reference = x.float().requires_grad_()
    expected = functional.max_pool2d(reference, window, stride, padding)
    y, winner = empty_chwn(expected.shape, dtype), empty_chwn(expected.shape, dtype=torch.uint8)
    geometry = (c, h, w, n, window, stride, padding)
    forward, backward = (kernel(native, name, dtype) for name in ("max_pool_forward", "max_pool_backward"))
    forward(x.data_ptr(), *geometry, y.data_ptr(), winner.data_ptr(), threads)
    assert torch.equal(y.float(), expected)

    gradient = chwn(torch.randn(expected.shape).round().to(dtype))  # whole numbers: exact sums in any order
    expected.backward(gradient.float())
    grad_x = empty_chwn(size, dtype)
    backward(gradient.data_ptr(), winner.data_ptr(), *geometry, grad_x.data_ptr(), threads)
    assert reference.grad is not None
    assert torch.equal(grad_x.float(), reference.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 67])
def test_a_nan_is_not_hidden_by_pooling(native: ModuleType, dtype: torch.dtype, n: int) -> None:
    x = chwn(torch.randn(n, 2, 4, 4).to(dtype))
    x[1, 0, 2, 2] = float("nan")
    y, winner = empty_chwn((n, 2, 2, 2), dtype), empty_chwn((n, 2, 2, 2), dtype=torch.uint8)
    run = kernel(native, "max_pool_forward", dtype)
    run(x.data_ptr(), 2, 4, 4, n, 2, 2, 0, y.data_ptr(), winner.data_ptr(), 1)
    assert torch.equal(y.isnan(), functional.max_pool2d(x, 2).isnan())


def test_gradients_of_windows_that_overlap_are_rounded_once(native: ModuleType) -> None:
    """The maximum of all nine windows is the middle: its gradients are added in float32."""
    size, geometry = (70, 2, 3, 3), (2, 3, 3, 70, 3, 1, 1)
    x = chwn(torch.zeros(size).bfloat16())
    x[:, :, 1, 1] = 2
    y, winner = empty_chwn(size, torch.bfloat16), empty_chwn(size, dtype=torch.uint8)
    native.max_pool_forward_bf16(x.data_ptr(), *geometry, y.data_ptr(), winner.data_ptr(), 1)
    gradient, grad_x = chwn(torch.rand(size).bfloat16()), empty_chwn(size, torch.bfloat16)
    native.max_pool_backward_bf16(gradient.data_ptr(), winner.data_ptr(), *geometry, grad_x.data_ptr(), 1)
    expected = gradient.float().sum((2, 3))
    assert ((grad_x[:, :, 1, 1].float() - expected).abs() <= expected * rounding(torch.bfloat16)).all()


@pytest.mark.parametrize(
    ("window", "stride", "padding", "message"),
    [
        (0, 1, 0, "kernel"),
        (17, 1, 0, "kernel"),
        (2, 0, 0, "stride"),
        (2, 2, 2, "padding"),
        (5, 1, 0, "larger"),
    ],
)
def test_impossible_windows_are_refused(
    native: ModuleType, window: int, stride: int, padding: int, message: str
) -> None:
    x, winner = torch.randn(400), torch.empty(400, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        native.max_pool_forward(
            x.data_ptr(), 1, 4, 4, 1, window, stride, padding, x.data_ptr(), winner.data_ptr(), 1
        )


@fast
@given(
    size=sizes,
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    threads=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES),
)
@example(size=(64, 9, 63, 61), window=(2, 2), threads=2, dtype=torch.float32)  # beyond the cache
@example(size=(64, 18, 63, 61), window=(2, 2), threads=2, dtype=torch.bfloat16)
@example(size=(17, 3, 7, 7), window=(7, 7), threads=1, dtype=torch.float32)
@example(size=(67, 3, 7, 7), window=(7, 7), threads=1, dtype=torch.bfloat16)
def test_averages(
    native: ModuleType,
    size: tuple[int, int, int, int],
    window: tuple[int, int],
    threads: int,
    dtype: torch.dtype,
) -> None:
    n, c, h, w = size
    assume(window[0] <= h and window[1] <= w)
    x, off = chwn(torch.randn(size).to(dtype)), rounding(dtype) + 1e-6
    reference = x.double().requires_grad_()
    expected = functional.avg_pool2d(reference, window)
    y, grad_x = empty_chwn(tuple(expected.shape), dtype), empty_chwn(size, dtype)
    forward, backward = (kernel(native, name, dtype) for name in ("average_forward", "average_backward"))
    forward(x.data_ptr(), c, h, w, n, *window, y.data_ptr(), threads)
    assert torch.allclose(y.double(), expected, rtol=off, atol=1e-6)
    gradient = chwn(torch.randn(expected.shape).to(dtype))
    expected.backward(gradient.double())
    backward(gradient.data_ptr(), c, h, w, n, *window, grad_x.data_ptr(), threads)
    assert reference.grad is not None
    assert torch.allclose(grad_x.double(), reference.grad, rtol=off, atol=0)


@pytest.mark.parametrize(("window", "message"), [((0, 1), "at least one"), ((1, 5), "larger")])
def test_impossible_averages_are_refused(native: ModuleType, window: tuple[int, int], message: str) -> None:
    x = torch.zeros(16)
    for run in (native.average_forward, native.average_backward):
        with pytest.raises(ValueError, match=message):
            run(x.data_ptr(), 1, 4, 4, 1, *window, x.data_ptr(), 1)
