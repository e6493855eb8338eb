"""Compressed activations, and the weight gradient from them, against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from chwn_layout import chwn, empty_chwn
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.grad import conv2d_weight

UNIT = 16  # positions in a word of bits
fast = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Compressed:
    """What is kept of activations (N, C, H, W): see activations.h."""

    values: Tensor  # (kept,)
    bits: Tensor  # (C, ceil(H * W / 16), N) int16
    starts: Tensor  # (C + 1,) int64

    def pointers(self) -> tuple[int, int, int]:
        return self.values.data_ptr(), self.bits.data_ptr(), self.starts.data_ptr()


def compress(
    native: ModuleType,
    x: Tensor,
    threshold: float = 0.0,
    mask: Tensor | None = None,
    threads: int = 1,
    factors: tuple[Tensor, Tensor] | None = None,
) -> Compressed:
    n, c, h, w = x.shape
    bits = torch.full((c, -(-h * w // UNIT), n), -1, dtype=torch.int16)
    starts, counts = torch.full((c + 1,), -1), torch.full((c, n), -1, dtype=torch.int32)
    source, marks = chwn(x), chwn(mask.to(torch.uint8)) if mask is not None else None
    scale, shift = (0, 0) if factors is None else (factor.data_ptr() for factor in factors)
    which = (
        source.data_ptr(),
        scale,
        shift,
        marks.data_ptr() if marks is not None else 0,
        threshold,
        c,
        h * w,
        n,
    )
    found = native.compress_count(*which, counts.data_ptr(), starts.data_ptr(), threads)
    values = torch.full((found.count + 1,), float("nan"))  # one more, to see that it is left alone
    pointers = (t.data_ptr() for t in (counts, starts, values, bits))
    native.compress_fill(*which, *pointers, threads)
    assert values[-1].isnan()
    return Compressed(values[:-1], bits, starts)


def expand(native: ModuleType, form: Compressed, size: tuple[int, int, int, int], threads: int = 1) -> Tensor:
    n, c, h, w = size
    x = empty_chwn(size).fill_(float("nan"))
    native.expand(*form.pointers(), c, h * w, n, x.data_ptr(), threads)
    return x


@dataclass(frozen=True)
class Conv:
    """One convolution: sizes of its input (N, C, H, W) and weight (K, C, R, S), strides and paddings."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def output(self) -> tuple[int, int]:
        padded = self.h + 2 * self.padding[0] - self.r, self.w + 2 * self.padding[1] - self.s
        return padded[0] // self.stride[0] + 1, padded[1] // self.stride[1] + 1

    @property
    def is_possible(self) -> bool:
        return min(self.output) > 0

    def random(self, sparsity: float, seed: int = 0) -> tuple[Tensor, Tensor, float]:
        """Return activations, an output gradient, and the threshold of `sparsity`."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.n, self.c, self.h, self.w, generator=generator)
        gradient = torch.randn(self.n, self.k, *self.output, generator=generator)
        rank = min(x.numel(), int(sparsity * x.numel()) + 1)
        return x, gradient, float(x.abs().flatten().kthvalue(rank).values)

    def expected(self, x: Tensor, gradient: Tensor) -> Tensor:
        size = (self.k, self.c, self.r, self.s)
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
        }
        return conv2d_weight(x.double(), size, gradient.double(), **geometry)

    def grad_weight(self, native: ModuleType, form: Compressed, gradient: Tensor, threads: int = 1) -> Tensor:
        sizes = (self.n, self.c, self.h, self.w, self.k, self.r, self.s)
        shape = native.ConvShape(*sizes, *self.stride, *self.padding, *self.output)
        found = torch.full((self.k, self.c, self.r, self.s), float("nan"))
        source = chwn(gradient)
        native.grad_weight(shape, *form.pointers(), source.data_ptr(), found.data_ptr(), threads)
        return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


sizes = st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(1, 12), st.integers(1, 12))
convolutions = st.builds(
    Conv,
    n=st.integers(1, 36),
    c=st.integers(1, 9),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    k=st.sampled_from([1, 3, 4, 8, 15, 16, 17, 40, 64, 70]),
    r=st.integers(1, 7),
    s=st.integers(1, 7),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)


@fast
@given(size=sizes, sparsity=st.floats(0, 1), threads=st.integers(1, 3), masked=st.booleans(), data=st.data())
def test_what_is_kept_and_in_which_order(
    native: ModuleType,
    size: tuple[int, int, int, int],
    sparsity: float,
    threads: int,
    masked: bool,
    data: st.DataObject,
) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    threshold = float(x.abs().quantile(sparsity))
    kept = x.abs() >= threshold
    form = compress(native, x, 0.0 if masked else threshold, kept if masked else None, threads)
    ordered = x.transpose(0, 1)[kept.transpose(0, 1)]  # by channel, sample, position
    assert torch.equal(form.values, ordered)
    counts = kept.transpose(0, 1).flatten(1).sum(1)
    assert form.starts.tolist() == [0, *counts.cumsum(0).tolist()]
    assert torch.equal(expand(native, form, size, threads), x * kept)
    words = (form.bits.transpose(1, 2).long() & 0xFFFF).unsqueeze(-1) >> torch.arange(UNIT) & 1
    flags = words.flatten(2)  # (C, N, positions and what fills the last word)
    area = size[2] * size[3]
    assert torch.equal(flags[..., :area].bool(), kept.transpose(0, 1).flatten(2))
    assert not flags[..., area:].any()


def test_not_a_number_is_kept(native: ModuleType) -> None:
    x = torch.zeros(18, 2, 3, 3)
    x[17, 1, 2, 0] = float("nan")
    form = compress(native, x, threshold=1.0)
    assert form.values.isnan().tolist() == [True]
    assert form.starts.tolist() == [0, 0, 1]


@fast
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    threshold=st.sampled_from([2.0**-149, 0.5, 2.0]),
    threads=st.integers(1, 3),
)
def test_what_batch_norm_and_relu_made_is_compressed_from_their_input(
    native: ModuleType, size: tuple[int, int, int, int], threshold: float, threads: int
) -> None:
    n, c, h, w = size
    x, scale, shift = chwn(torch.randn(size)), torch.randn(c), torch.randn(c)
    y = empty_chwn(size)
    pointers = (
        x.data_ptr(),
        c,
        h * w * n,
        scale.data_ptr(),
        shift.data_ptr(),
        0,
        True,
        y.data_ptr(),
        0,
        threads,
    )
    native.affine_forward(*pointers)
    expected = compress(native, y, threshold)
    found = compress(native, x, threshold, threads=threads, factors=(scale, shift))
    for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert torch.equal(ours, theirs)


@fast
@given(conv=convolutions, sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95]), seed=st.integers(0, 1000))
@example(conv=Conv(33, 3, 32, 32, 33, 3, 3, padding=(1, 1)), sparsity=0.5, seed=0)  # cut maps, two bands
@example(conv=Conv(128, 4, 4, 4, 16, 3, 3, padding=(1, 1)), sparsity=0.8, seed=0)
@example(conv=Conv(18, 3, 57, 58, 17, 3, 3, (2, 2), (1, 1)), sparsity=0.5, seed=0)  # cut and strided
@example(conv=Conv(17, 5, 56, 56, 64, 1, 1), sparsity=0.5, seed=0)
@example(conv=Conv(17, 5, 56, 30, 70, 1, 1, (2, 2)), sparsity=0.5, seed=0)
@example(conv=Conv(3, 2, 90, 91, 20, 7, 7, (2, 2), (3, 3)), sparsity=0.5, seed=0)
@example(conv=Conv(2, 2, 3, 1500, 9, 3, 3, (1, 1), (1, 1)), sparsity=0.5, seed=0)  # a row is more than a slab
@example(conv=Conv(1, 2, 1, 5000, 65, 1, 1), sparsity=0.5, seed=0)
@example(conv=Conv(2, 2, 6, 1500, 9, 3, 5, (2, 2), (1, 2)), sparsity=0.5, seed=0)
def test_agrees_with_torch_in_float64(native: ModuleType, conv: Conv, sparsity: float, seed: int) -> None:
    assume(conv.is_possible)
    x, gradient, threshold = conv.random(sparsity, seed)
    form = compress(native, x, threshold)
    found = conv.grad_weight(native, form, gradient)
    assert relative_error(found, conv.expected(x * (x.abs() >= threshold), gradient)) < 1e-5


@fast
@given(conv=convolutions, threads=st.integers(2, 5), seed=st.integers(0, 1000))
@example(conv=Conv(20, 9, 8, 8, 4, 3, 3, padding=(1, 1)), threads=3, seed=0)  # few filters
def test_does_not_depend_on_the_number_of_threads(
    native: ModuleType, conv: Conv, threads: int, seed: int
) -> None:
    assume(conv.is_possible)
    x, gradient, threshold = conv.random(0.7, seed)
    form = compress(native, x, threshold)
    alone = conv.grad_weight(native, form, gradient)
    assert torch.equal(conv.grad_weight(native, form, gradient, threads), alone)


def test_nothing_kept_means_no_gradient(native: ModuleType) -> None:
    conv = Conv(5, 3, 6, 6, 7, 3, 3, padding=(1, 1))
    x, gradient, _ = conv.random(0.0)
    form = compress(native, x, threshold=1e9)
    assert form.values.numel() == 0
    assert not conv.grad_weight(native, form, gradient).any()


def test_a_lost_entry_is_noticed(native: ModuleType) -> None:
    conv = Conv(16, 4, 8, 8, 16, 3, 3, padding=(1, 1))
    x, gradient, threshold = conv.random(0.8)
    form = compress(native, x, threshold)
    form.values[7] = 0
    found = conv.grad_weight(native, form, gradient)
    assert relative_error(found, conv.expected(x * (x.abs() >= threshold), gradient)) > 1e-3
