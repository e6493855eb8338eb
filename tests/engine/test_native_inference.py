"""The kernels of inference against torch in float64: by rows, with what follows fused, pooling."""

from __future__ import annotations

import math
from dataclasses import astuple
from types import ModuleType

import pytest
import torch
from chwn_layout import chwn, empty_chwn
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_native_products import Shape, check_close, random, shapes
from torch import Tensor
from torch.nn import functional

from torchswat.runtime import lists

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

EXAMPLES = (
    Shape(1, 64, 32, 32, 16, 3, 3),
    Shape(1, 40, 16, 16, 12, 3, 3),
    Shape(1, 40, 8, 8, 12, 3, 3),
    Shape(1, 70, 4, 4, 12, 3, 3),
    Shape(1, 70, 2, 2, 12, 3, 3),
    Shape(3, 20, 56, 20, 5, 3, 3),
    Shape(1, 300, 28, 28, 9, 1, 1, pad_h=0, pad_w=0),
    Shape(8, 20, 14, 14, 5, 3, 3),
    Shape(1, 3, 40, 40, 8, 7, 7, 2, 2, 3, 3),
    Shape(1, 20, 16, 16, 5, 3, 3, 2, 2),
    Shape(2, 20, 16, 16, 5, 1, 1, 2, 2, 0, 0),
    Shape(64, 20, 8, 8, 24, 3, 3),
    Shape(40, 64, 5, 5, 24, 1, 1, pad_h=0, pad_w=0),
)


def convolve(
    native: ModuleType,
    kernel: str,
    shape: Shape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    threads: int,
) -> Tensor:
    """Run one of the two kernels of inference."""
    sizes = native.ConvShape(*astuple(shape), *shape.output)
    weights = weight.contiguous().numpy()
    if kernel == "conv_rows":
        packed = lists.for_rows(native, sizes, weights)
    else:
        packed = lists.for_samples(native, sizes, weights, (1, 1), threads)
    floats = (native.rows_workspace if kernel == "conv_rows" else native.conv_workspace)(sizes, threads)
    workspace = torch.full((floats,), float("nan"))
    y = empty_chwn((shape.n, shape.k, *shape.output))
    source = chwn(x)
    added = None if residual is None else chwn(residual)
    getattr(native, kernel)(
        sizes,
        source.data_ptr(),
        *packed.addresses(),
        bias.data_ptr(),
        0 if added is None else added.data_ptr(),
        native.Activation(1, 0.0, math.inf) if relu else native.Activation(),
        y.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return y


def check(
    native: ModuleType, kernel: str, shape: Shape, density: float, added: bool, relu: bool, threads: int
) -> None:
    x = random(shape.n, shape.c, shape.h, shape.w, seed=1)
    weight = random(shape.k, shape.c, shape.r, shape.s, seed=2)
    weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < density
    bias = random(shape.k, seed=4)
    residual = random(shape.n, shape.k, *shape.output, seed=5) if added else None

    y = convolve(native, kernel, shape, x, weight, bias, residual, relu, threads)

    stride, padding = shape.geometry
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    magnitudes = functional.conv2d(
        x.double().abs(), weight.double().abs(), bias.double().abs(), stride, padding
    )
    if residual is not None:
        expected, magnitudes = expected + residual.double(), magnitudes + residual.double().abs()
    check_close(y, expected.relu() if relu else expected, magnitudes)
    if threads > 1:  # bit for bit, with any number of threads
        assert torch.equal(y, convolve(native, kernel, shape, x, weight, bias, residual, relu, 1))


@fast
@given(
    st.sampled_from(("conv_rows", "conv_forward_fused")),
    shapes,
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 2, 3)),
)
def test_any_shape(
    native: ModuleType, kernel: str, shape: Shape, density: float, added: bool, relu: bool, threads: int
) -> None:
    assume(min(shape.h + 2 * shape.pad_h - shape.r, shape.w + 2 * shape.pad_w - shape.s) >= 0)
    check(native, kernel, shape, density, added, relu, threads)


@pytest.mark.parametrize("kernel", ["conv_rows", "conv_forward_fused"])
@pytest.mark.parametrize("shape", EXAMPLES, ids=str)
def test_special_shapes(native: ModuleType, kernel: str, shape: Shape) -> None:
    check(native, kernel, shape, 0.2, added=True, relu=True, threads=2)


@pytest.mark.parametrize("kernel", ["conv_rows", "conv_forward_fused"])
def test_nan_is_not_hidden(native: ModuleType, kernel: str) -> None:
    shape = Shape(16, 4, 6, 6, 4, 3, 3)
    x = torch.ones(16, 4, 6, 6)
    x[3, 1, 2, 2] = float("nan")
    y = convolve(native, kernel, shape, x, torch.ones(4, 4, 3, 3), torch.zeros(4), None, True, 1)
    assert y[3, :, 2, 2].isnan().all() and y[:3].isfinite().all()


def test_the_kernel_may_not_reach_too_far(native: ModuleType) -> None:
    sizes = native.ConvShape(1, 1, 400, 400, 1, 300, 300, 1, 1, 0, 0, 101, 101)
    with pytest.raises(ValueError, match="16-bit"):
        native.rows_tiling(sizes, torch.empty(90_003, dtype=torch.int32).data_ptr())


@fast
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.sampled_from((1, 2, 5, 16, 19))),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
def test_pooling(
    native: ModuleType,
    size: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    average: bool,
    ceil: bool,
) -> None:
    channels, height, width, n = size
    assume(2 * padding <= kernel and min(height, width) + 2 * padding >= kernel)
    x = random(n, channels, height, width, seed=6)
    if average:
        expected = functional.avg_pool2d(x.double(), kernel, stride, padding)
    else:
        expected = functional.max_pool2d(x.double(), kernel, stride, padding, ceil_mode=ceil)
    y = empty_chwn(tuple(expected.shape))
    source = chwn(x)
    window = kernel, stride, padding, *expected.shape[2:]
    native.pool_rows(source.data_ptr(), channels, height, width, n, *window, average, y.data_ptr(), 2)
    check_close(y, expected, expected.abs() + 1)


def test_a_nan_wins(native: ModuleType) -> None:
    for n in (1, 20):
        x = random(n, 2, 4, 4, seed=7)
        x[0, 0, 1, 1] = float("nan")
        source, y = chwn(x), empty_chwn((n, 2, 2, 2))
        native.pool_rows(source.data_ptr(), 2, 4, 4, n, 2, 2, 0, 2, 2, False, y.data_ptr(), 1)
        assert y.isnan().sum() == 1 and y[0, 0, 0, 0].isnan()
