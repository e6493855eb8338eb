"""Products of 8-bit numbers against whole numbers of numpy: bitwise equal on every instruction set."""

from __future__ import annotations

from dataclasses import astuple
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_native_products import Shape, shapes
from torch.nn import functional

from torchswat.runtime import lists
from torchswat.runtime.fours import from_fours, groups, to_fours, weight_fours
from torchswat.runtime.memory import address, chwn, empty

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Array = np.ndarray

EXAMPLES = (
    Shape(1, 64, 32, 32, 16, 3, 3),
    Shape(1, 300, 8, 8, 13, 3, 3),
    Shape(1, 300, 4, 4, 12, 3, 3),
    Shape(1, 70, 2, 2, 12, 3, 3),
    Shape(3, 20, 26, 20, 5, 3, 3),
    Shape(1, 600, 28, 28, 9, 1, 1, pad_h=0, pad_w=0),
    Shape(1, 3, 40, 40, 8, 7, 7, 2, 2, 3, 3),
    Shape(1, 20, 16, 16, 5, 3, 3, 2, 2),
    Shape(2, 20, 16, 16, 5, 1, 1, 2, 2, 0, 0),
    Shape(64, 20, 16, 16, 24, 3, 3),
    Shape(33, 300, 8, 8, 10, 3, 3),
    Shape(32, 400, 4, 4, 10, 3, 3),
    Shape(40, 20, 2, 2, 10, 3, 3),
    Shape(40, 64, 5, 5, 24, 1, 1, pad_h=0, pad_w=0),
)
KERNELS = {"rows_fours": "rows_workspace", "conv_fours": "conv_workspace"}


def drawn(seed: int, low: int, high: int, *sizes: int) -> Array:
    return np.random.default_rng(seed).integers(low, high, sizes, endpoint=True)


class Case:
    """A product with what follows it, and what it must be."""

    def __init__(
        self, shape: Shape, density: float, added: bool, relu: bool, zero: int, outside: int
    ) -> None:
        self.shape, self.relu, self.zero, self.outside = shape, relu, zero, outside
        self.x = drawn(1, 0, 255, shape.n, shape.c, shape.h, shape.w).astype(np.uint8)
        weight = drawn(2, -128, 127, shape.k, shape.c, shape.r, shape.s)
        kept = np.random.default_rng(3).random(weight.shape) < density
        self.weight = np.where(kept, weight, 0).astype(np.int8)
        self.start = drawn(4, -1000, 1000, shape.k).astype(np.int32)
        spread = max(1.0, 80.0 * np.sqrt(density * shape.c * shape.r * shape.s))
        self.factor = (np.random.default_rng(5).uniform(0.5, 1.5, shape.k) / spread).astype(np.float32)
        self.shift = np.random.default_rng(6).normal(0, 40, shape.k).astype(np.float32)
        self.added = drawn(7, 0, 255, shape.n, shape.k, *shape.output).astype(np.uint8) if added else None
        self.by = np.float32(0.37)

    def numbers(self) -> Array:
        """Return the results before they become bytes."""
        s = self.shape
        pads = (0, 0), (0, 0), (s.pad_h, s.pad_h), (s.pad_w, s.pad_w)
        x = np.pad(self.x.astype(np.int64), pads, constant_values=self.outside)
        weight = self.weight.astype(np.int64)
        height, width = s.output
        sums = np.zeros((s.n, s.k, height, width), np.int64) + self.start.reshape(-1, 1, 1)
        for r in range(s.r):
            for c in range(s.s):
                seen = x[:, :, r : r + s.stride_h * (height - 1) + 1 : s.stride_h]
                seen = seen[..., c : c + s.stride_w * (width - 1) + 1 : s.stride_w]
                sums += np.einsum("nchw,kc->nkhw", seen, weight[:, :, r, c])
        y = sums.astype(np.float32) * self.factor.reshape(-1, 1, 1) + self.shift.reshape(-1, 1, 1)
        if self.added is not None:
            y = y + self.added.astype(np.float32) * self.by
        return np.maximum(y, 0) if self.relu else y

    def bytes(self) -> Array:
        return np.clip(np.rint(self.numbers()) + self.zero, 0, 255).astype(np.uint8)

    def run(self, native: ModuleType, kernel: str, is_float: bool, threads: int) -> Array:
        """Return what a kernel makes of it."""
        s = self.shape
        n, c, *rest = astuple(s)
        sizes = native.ConvShape(n, groups(c), *rest, *s.output, 1, 1, self.outside)
        fours = weight_fours(self.weight)
        if kernel == "rows_fours":
            packed = lists.for_rows(native, sizes, fours)
        else:
            packed = lists.fours_for_samples(native, sizes, fours, threads)
        workspace = empty(getattr(native, KERNELS[kernel])(sizes, threads))
        workspace[:] = np.nan
        made = (s.n, s.k, *s.output)
        y = chwn(empty(int(np.prod(made))), made) if is_float else np.full_like(to_fours(np.zeros(made)), 99)
        x, added = to_fours(self.x), None if self.added is None else to_fours(self.added)
        end = native.QuantizedEnd(
            *(address(each) for each in (self.start, self.factor, self.shift)), self.by, self.zero, is_float
        )
        getattr(native, kernel)(
            sizes,
            address(x),
            *packed.addresses(),
            end,
            0 if added is None else address(added),
            self.relu,
            address(y),
            address(workspace),
            threads,
        )
        if is_float:
            return y
        assert not from_fours(y, groups(s.k) * 4)[:, s.k :].any()
        return from_fours(y, s.k)

    def check(self, native: ModuleType, kernel: str, threads: int) -> None:
        assert np.array_equal(self.run(native, kernel, False, threads), self.bytes())
        assert np.array_equal(self.run(native, kernel, True, threads), self.numbers())


@fast
@given(
    st.sampled_from(list(KERNELS)),
    shapes,
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 3, 128, 255)),
    st.sampled_from((0, 128, 255)),
    st.sampled_from((1, 2, 3)),
)
def test_any_shape(
    native: ModuleType,
    kernel: str,
    shape: Shape,
    density: float,
    added: bool,
    relu: bool,
    zero: int,
    outside: int,
    threads: int,
) -> None:
    assume(min(shape.h + 2 * shape.pad_h - shape.r, shape.w + 2 * shape.pad_w - shape.s) >= 0)
    Case(shape, density, added, relu, zero, outside).check(native, kernel, threads)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("outside", [0, 77])
@pytest.mark.parametrize("shape", EXAMPLES, ids=str)
def test_special_shapes(native: ModuleType, kernel: str, shape: Shape, outside: int) -> None:
    Case(shape, 0.2, added=True, relu=True, zero=0, outside=outside).check(native, kernel, 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("byte", [0, 255])
def test_extremes_do_not_saturate(native: ModuleType, kernel: str, weight: int, byte: int) -> None:
    case = Case(Shape(16, 9, 6, 6, 5, 3, 3), 1.0, added=False, relu=False, zero=128, outside=byte)
    case.weight[:], case.x[:] = weight, byte
    case.check(native, kernel, 1)
    assert np.isin(case.bytes(), (0, 255)).any() or byte == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_lone_four_of_the_lowest_number(native: ModuleType, kernel: str) -> None:
    case = Case(Shape(16, 4, 4, 4, 4, 1, 1, pad_h=0, pad_w=0), 0.0, False, False, 128, 0)
    case.weight[:, 3] = -128  # bits of minus zero in float32
    case.check(native, kernel, 1)


def test_halves_are_rounded_to_even(native: ModuleType) -> None:
    case = Case(Shape(16, 4, 1, 1, 4, 1, 1, pad_h=0, pad_w=0), 0.0, False, False, 100, 0)
    case.start[:], case.factor[:], case.shift[:] = [1, 3, -1, -3], 0.5, 0
    for kernel in KERNELS:
        assert case.run(native, kernel, False, 1)[0].ravel().tolist() == [100, 102, 100, 98]
        case.check(native, kernel, 1)


@fast
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.floats(1e-3, 10),
    st.sampled_from((0, 1, 128, 255)),
    st.sampled_from((1, 2)),
)
def test_to_bytes_and_back(
    native: ModuleType, channels: int, length: int, scale: float, zero: int, threads: int
) -> None:
    step = np.float32(scale)
    x = np.random.default_rng(8).normal(0, 100, (1, channels, length)).astype(np.float32)
    x[0, 0, :3] = [np.nan, np.inf, -np.inf][:length]
    fours = np.full((groups(channels), length, 1, 4), 99, np.uint8)
    native.quantize_fours(address(x), channels, length, step, zero, address(fours), threads)
    with np.errstate(invalid="ignore"):
        expected = np.clip(np.fmax(np.rint(x / step) + zero, 0), 0, 255).astype(np.uint8)
    assert np.array_equal(from_fours(fours, channels), expected)
    assert not from_fours(fours, groups(channels) * 4)[:, channels:].any()

    back = np.empty((channels, length), np.float32)
    native.dequantize_fours(address(fours), channels, length, step, zero, address(back), threads)
    assert np.array_equal(back, (expected[0].astype(np.float32) - np.float32(zero)) * step)


@fast
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.sampled_from((1, 2, 16, 19))),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
)
def test_max_pool(
    native: ModuleType, size: tuple[int, int, int, int], kernel: int, stride: int, padding: int, ceil: bool
) -> None:
    channels, height, width, n = size
    assume(2 * padding <= kernel and min(height, width) + 2 * padding >= kernel)
    x = drawn(9, 0, 255, n, channels, height, width).astype(np.uint8)
    maps = torch.from_numpy(x.astype(np.float64))
    expected = functional.max_pool2d(maps, kernel, stride, padding, ceil_mode=ceil).numpy().astype(np.uint8)
    fours = to_fours(x)
    y = np.full_like(to_fours(expected), 99)
    window = kernel, stride, padding, *expected.shape[2:]
    native.max_pool_fours(address(fours), groups(channels), height, width, n, *window, address(y), 2)
    assert np.array_equal(y, to_fours(expected))


def test_a_zero_point_is_a_byte(native: ModuleType) -> None:
    with pytest.raises(ValueError, match="byte"):
        native.QuantizedEnd(0, 0, 0, 1.0, 256, False)
    with pytest.raises(ValueError, match="byte"):
        native.quantize_fours(0, 0, 0, 1.0, -1, 0, 1)
