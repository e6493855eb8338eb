"""Activations, sums, norms, softmax, attention and depthwise kernels of inference against float64."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from torchswat.runtime.activations import NAMES, Activation

Array = np.ndarray
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
threads = st.sampled_from((1, 2))
NUMBERS = {"Clip": (0.0, 6.0), "LeakyRelu": (0.1, 0.0), "HardSigmoid": (0.2, 0.5)}
EXACT = {
    "none": lambda x: x,
    "Clip": lambda x: x.clamp(0, 6),
    "LeakyRelu": lambda x: F.leaky_relu(x, 0.1),
    "Sigmoid": torch.sigmoid,
    "Swish": F.silu,
    "HardSigmoid": lambda x: (x * 0.2 + 0.5).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Tanh": torch.tanh,
    "Gelu": F.gelu,
    "GeluTanh": lambda x: F.gelu(x, approximate="tanh"),
    "Exp": torch.exp,
    "Erf": torch.erf,
}


def address(array: Array | None) -> int:
    return 0 if array is None else array.ctypes.data


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def kernels_own(native: ModuleType, name: str) -> object:
    return native.Activation(NAMES.index(name), *NUMBERS.get(name, (0.0, 0.0)))


def activated(native: ModuleType, name: str, x: Array, count: int = 1) -> Array:
    y = np.full(x.size + 1, np.float32(7))
    native.activate(address(x), x.size, kernels_own(native, name), address(y), count)
    assert y[-1] == 7, "it wrote beyond the end"
    return y[:-1].reshape(x.shape)


def near(found: Array, expected: Array, error: float, of: float | Array = 0.0) -> None:
    """Complain beyond `error` of each entry and of `of`."""
    gap = np.abs(found.astype(np.float64) - expected)
    assert np.all(gap <= error * (np.abs(expected) + of)), float(np.nanmax(gap))


def test_the_list_is_complete(native: ModuleType):
    assert set(EXACT) == set(NAMES)
    for number in (-1, len(NAMES)):
        with pytest.raises(ValueError, match="no activation"):
            native.Activation(number)


@quick
@given(st.sampled_from(NAMES), st.integers(1, 100), st.sampled_from((1e-4, 1.0, 8.0)), threads)
def test_activations(native: ModuleType, name: str, n: int, scale: float, count: int):
    x = normal(n, seed=n, scale=scale)
    expected = EXACT[name](torch.from_numpy(x).double()).numpy()
    # Where terms nearly cancel, as in GELU and at the edge of HardSigmoid, the error is a share of x.
    near(
        activated(native, name, x, count),
        expected,
        1e-6,
        of=np.abs(x) if "elu" in name or "wish" in name or "Hard" in name else 0,
    )


@pytest.mark.parametrize("name", NAMES)
def test_activations_of_many(native: ModuleType, name: str):
    x = normal(40_001, scale=3)
    assert np.array_equal(activated(native, name, x, 1), activated(native, name, x, 3))


@pytest.mark.parametrize("name", NAMES)
def test_special_numbers_are_those_of_numpy(native: ModuleType, name: str):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-40, 100, -100] * 3, np.float32)
    with np.errstate(all="ignore"):
        expected = Activation(name, *NUMBERS.get(name, (0.0, 0.0)))(x.copy())
    np.testing.assert_allclose(activated(native, name, x), expected, rtol=1e-6, atol=1e-37)


def test_clip_to_infinity_is_relu(native: ModuleType):
    x, y = np.array([np.nan, np.inf, -np.inf, -1, 2], np.float32), np.empty(5, np.float32)
    native.activate(address(x), 5, native.Activation(1, 0.0, math.inf), address(y), 1)
    np.testing.assert_array_equal(y, [np.nan, np.inf, 0, 0, 2])


@quick
@given(st.sampled_from(range(4)), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), threads)
def test_combine(native: ModuleType, operation: int, outer: int, middle: int, inner: int, count: int):
    a, b, y = (
        normal(outer, middle, inner),
        normal(outer, 1, inner, seed=1),
        np.empty((outer, middle, inner), np.float32),
    )
    native.combine(operation, address(a), address(b), outer, middle, inner, address(y), count)
    function = (np.add, np.multiply, np.subtract, np.divide)[operation]
    np.testing.assert_array_equal(y, function(a, b))


@pytest.mark.parametrize("sizes", [(40, 1000, 1), (1, 1, 50_001), (300, 100, 3)])
def test_combine_of_many(native: ModuleType, sizes: tuple[int, int, int]):
    a, b, y = normal(*sizes), normal(sizes[0], 1, sizes[2], seed=1), np.empty(sizes, np.float32)
    native.combine(1, address(a), address(b), *sizes, address(y), 2)
    np.testing.assert_array_equal(y, a * b)
    with pytest.raises(ValueError, match="no operation"):
        native.combine(4, address(a), address(b), *sizes, address(y), 2)


@quick
@given(
    st.integers(1, 4),
    st.integers(1, 50),
    st.sampled_from((1, 1, 2, 15, 16, 33)),
    st.booleans(),
    st.booleans(),
    threads,
)
def test_layer_norm(
    native: ModuleType, outer: int, length: int, inner: int, scaled: bool, moved: bool, count: int
):
    x, y = normal(outer, length, inner) + np.float32(2), np.empty((outer, length, inner), np.float32)
    scale = normal(length, seed=1) if scaled else None
    bias = normal(length, seed=2) if moved else None
    native.layer_norm(
        address(x), outer, length, inner, address(scale), address(bias), 1e-5, address(y), count
    )
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    exact = exact * (1 if scale is None else scale[:, None]) + (0 if bias is None else bias[:, None])
    near(y, exact, 1e-5, of=40 if length > 1 else 1e-3)


@quick
@given(st.integers(1, 4), st.integers(1, 50), st.sampled_from((1, 1, 2, 15, 16, 33)), threads)
def test_softmax(native: ModuleType, outer: int, length: int, inner: int, count: int):
    x, y = normal(outer, length, inner, scale=5), np.empty((outer, length, inner), np.float32)
    native.softmax(address(x), outer, length, inner, address(y), count)
    near(y, torch.from_numpy(x).double().softmax(1).numpy(), 1e-5, of=1e-30)


@quick
@given(st.integers(1, 4), st.integers(1, 300), st.sampled_from((1, 1, 2, 15, 16, 33)), threads)
def test_means(native: ModuleType, outer: int, length: int, inner: int, count: int):
    x, y = normal(outer, length, inner), np.empty((outer, inner), np.float32)
    native.mean_along(address(x), outer, length, inner, address(y), count)
    near(y, x.astype(np.float64).mean(1), 1e-6, of=4)


@pytest.mark.parametrize("inner", [1, 3, 16])
def test_softmax_of_special_numbers(native: ModuleType, inner: int):
    rows = [[1, np.nan, 2], [np.inf, 0, 1], [-np.inf] * 3, [-np.inf, 0, 0], [1000, 999, -1000]]
    x = np.repeat(np.array(rows, np.float32)[:, :, None], inner, 2)
    y = np.empty_like(x)
    native.softmax(address(x), 5, 3, inner, address(y), 1)
    with np.errstate(all="ignore"):
        gaps = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, gaps / gaps.sum(1, keepdims=True), rtol=1e-6)


@quick
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 30),
    st.booleans(),
    threads,
)
def test_attention(
    native: ModuleType,
    images: int,
    heads: int,
    queries: int,
    keys: int,
    size: int,
    value_size: int,
    apart: bool,
    count: int,
):
    """Tokens are neighbours; images lie between features (`apart`, as a product leaves them) or outside."""

    def lies(tokens: int, features: int, seed: int) -> Array:
        if apart:
            return normal(heads, features, images, tokens, seed=seed).transpose(2, 0, 3, 1)
        return normal(images, heads, features, tokens, seed=seed).transpose(0, 1, 3, 2)

    q, k, v = lies(queries, size, 0), lies(keys, size, 1), lies(keys, value_size, 2)
    y = np.full_like(lies(queries, value_size, 3), np.nan)
    strides = np.array([[each.strides[axis] // 4 for axis in (0, 1, 3)] for each in (q, k, v, y)], np.int64)
    sizes = images, heads, queries, keys, size, value_size, 0.3
    native.attention(address(q), address(k), address(v), address(y), address(strides), *sizes, count)
    scores = torch.from_numpy(0.3 * q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2))
    exact = scores.softmax(-1).numpy() @ v.astype(np.float64)
    near(y, exact, 1e-5, of=float(np.abs(v).max()))


@quick
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 5),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.sampled_from((1, 1, 2, 16)),
    st.sampled_from(NAMES),
    threads,
)
def test_depthwise(
    native: ModuleType,
    c: int,
    filters: int,
    h: int,
    w: int,
    r: int,
    s: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    steps: tuple[int, int],
    n: int,
    name: str,
    count: int,
):
    out = [
        (size + 2 * pad - (kernel - 1) * step - 1) // jump + 1
        for size, pad, kernel, step, jump in zip((h, w), padding, (r, s), steps, stride, strict=True)
    ]
    assume(min(out) >= 1)
    x, weight, bias = normal(n, c, h, w), normal(c * filters, 1, r, s, seed=1), normal(c * filters, seed=2)
    weight[weight > 1] = 0
    lies = np.ascontiguousarray(x.transpose(1, 2, 3, 0))
    y = np.full((c * filters, *out, n), np.nan, np.float32)
    shape = native.ConvShape(n, c, h, w, c * filters, r, s, *stride, *padding, *out, *steps)
    after = kernels_own(native, name)
    native.depthwise_rows(shape, address(lies), address(weight), address(bias), after, address(y), count)
    images, weights, biases = (torch.from_numpy(each).double() for each in (x, weight, bias))
    plain = F.conv2d(images, weights, biases, stride, padding, steps, c)
    near(y.transpose(3, 0, 1, 2), EXACT[name](plain).numpy(), 1e-5, of=10)


def test_depthwise_of_a_map_in_bands(native: ModuleType):
    x, weight, bias = normal(1, 5, 130, 140), normal(5, 1, 5, 5, seed=1), normal(5, seed=2)
    y = np.empty((5, 65, 70, 1), np.float32)
    shape = native.ConvShape(1, 5, 130, 140, 5, 5, 5, 2, 2, 1, 2, 65, 70)  # one row more below than above
    native.depthwise_rows(
        shape, address(x), address(weight), address(bias), native.Activation(), address(y), 2
    )
    padded = F.pad(torch.from_numpy(x).double(), (2, 2, 1, 3))
    exact = F.conv2d(padded, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 2, 0, 1, 5)
    near(y.transpose(3, 0, 1, 2), exact[:, :, :65, :70].numpy(), 1e-5, of=10)


@quick
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from((1, 1, 2, 16)),
    st.integers(1, 3),
    st.sampled_from((1, 2, 2, 3)),
    threads,
)
def test_spread(native: ModuleType, channels: int, h: int, w: int, n: int, r: int, s: int, count: int):
    x, y = normal(r, s, channels, h, w, n), np.full((channels, h, r, w, s, n), np.nan, np.float32)
    native.spread(address(x), channels, h, w, n, r, s, address(y), count)
    np.testing.assert_array_equal(y, x.transpose(2, 3, 0, 4, 1, 5))
