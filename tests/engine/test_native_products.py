"""Forward and grad_input from packed sparse weights against torch's dense convolution in float64."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from types import ModuleType

import pytest
import torch
from chwn_layout import chwn, empty_chwn
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from torchswat.engine.topk import SMALLEST

fast = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORWARD, GRAD_INPUT = 0, 1


@dataclass(frozen=True)
class Shape:
    """One convolution; the fields are the first arguments of the native ConvShape."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 1
    pad_w: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        height = (self.h + 2 * self.pad_h - self.r) // self.stride_h + 1
        return height, (self.w + 2 * self.pad_w - self.s) // self.stride_w + 1

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride and padding, as torch's convolution takes them."""
        return (self.stride_h, self.stride_w), (self.pad_h, self.pad_w)


shapes = st.builds(
    Shape,
    n=st.sampled_from((1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 40)),
    c=st.integers(1, 40),
    h=st.integers(1, 13),
    w=st.integers(1, 13),
    k=st.integers(1, 20),
    r=st.sampled_from((1, 2, 3, 3, 4, 5, 7)),
    s=st.sampled_from((1, 2, 3, 3, 4, 5, 7)),
    stride_h=st.integers(1, 3),
    stride_w=st.integers(1, 3),
    pad_h=st.integers(0, 4),
    pad_w=st.integers(0, 4),
)


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class Packed:
    """The native products of one layer with the weights that are kept."""

    def __init__(
        self,
        native: ModuleType,
        shape: Shape,
        weight: Tensor,
        threshold: float = 0.0,
        mask: Tensor | None = None,
        threads: int = 1,
        together: bool = True,
    ) -> None:
        self.native, self.shape = native, shape
        self.sizes = native.ConvShape(*astuple(shape), *shape.output)
        self.lists = [self.empty(product) for product in (FORWARD, GRAD_INPUT)]
        pointers = weight.data_ptr(), 0 if mask is None else mask.data_ptr()
        to = [native.PackedWeights(*(t.data_ptr() for t in lists)) for lists in self.lists]
        if together:
            found = native.pack_weights(self.sizes, *pointers, threshold, *to, 0, threads)
        else:
            nowhere = native.PackedWeights()
            found = native.pack_weights(self.sizes, *pointers, threshold, to[0], nowhere, 0, threads)
            native.pack_weights(self.sizes, *pointers, threshold, nowhere, to[1], 0, threads)
        chosen = (weight.abs() >= threshold) if mask is None else mask.bool()
        assert found.count == int((chosen & (weight != 0)).sum())

    def empty(self, product: int) -> tuple[Tensor, ...]:
        starts = torch.empty(self.native.weight_starts(self.sizes, product), dtype=torch.int32)
        capacity = self.native.weight_capacity(self.sizes, product)
        return starts, torch.empty(capacity), torch.empty(capacity, dtype=torch.int16)

    def forward(self, x: Tensor, bias: Tensor | None = None, threads: int = 1) -> Tensor:
        """The result (N, K, OH, OW) of an input with samples innermost."""
        y = empty_chwn((self.shape.n, self.shape.k, *self.shape.output)).fill_(float("nan"))
        workspace = torch.empty(self.native.conv_workspace(self.sizes, threads))
        pointers = x.data_ptr(), *(t.data_ptr() for t in self.lists[FORWARD])
        bias_pointer = 0 if bias is None else bias.data_ptr()
        self.native.conv_forward(
            self.sizes, *pointers, bias_pointer, y.data_ptr(), workspace.data_ptr(), threads
        )
        return y

    def grad_input(self, grad: Tensor, threads: int = 1) -> Tensor:
        """The gradient (N, C, H, W) of the input, from that of the output with samples innermost."""
        grad_x = empty_chwn((self.shape.n, self.shape.c, self.shape.h, self.shape.w)).fill_(float("nan"))
        workspace = torch.empty(self.native.conv_workspace(self.sizes, threads))
        pointers = grad.data_ptr(), *(t.data_ptr() for t in self.lists[GRAD_INPUT])
        self.native.conv_grad_input(self.sizes, *pointers, grad_x.data_ptr(), workspace.data_ptr(), threads)
        return grad_x


def check_close(actual: Tensor, expected: Tensor, magnitude: Tensor) -> None:
    """Compare with a float64 result; `magnitude`, the same sum over absolute values, bounds the rounding."""
    error = (actual.double() - expected).abs()
    assert bool((error <= 1e-6 * magnitude + 1e-30).all()), float((error / (magnitude + 1e-30)).max())


def dense_products(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """The result and the gradient of the input, by torch in float64."""
    x = x.double().requires_grad_()
    y = functional.conv2d(x, weight.double(), bias.double(), *shape.geometry)
    return y.detach(), torch.autograd.grad(y, x, grad.double())[0]


EXAMPLES = (
    Shape(17, 75, 4, 4, 40, 3, 3),  # trimmed tiles that lie at four edges of the map
    Shape(33, 40, 8, 8, 20, 3, 3),  # ... at two
    Shape(16, 30, 4, 8, 9, 3, 3),
    Shape(100, 50, 2, 2, 20, 3, 3),  # tiny maps: whole tiles of samples, a part of one, a part of a vector
    Shape(9, 5, 2, 2, 3, 3, 3),
    Shape(64, 40, 16, 16, 40, 3, 3),  # several blocks of channels
    Shape(32, 2, 40, 41, 50, 3, 3),  # a result that goes past the caches
    Shape(32, 3, 40, 41, 50, 3, 3, 2, 2),
    Shape(5, 90, 7, 9, 70, 1, 1, 1, 1, 0, 0),  # 1x1, with a part of a vector left over
    Shape(1, 3, 181, 183, 40, 1, 1, 1, 1, 0, 0),
    Shape(20, 33, 9, 9, 20, 1, 1, 2, 2, 0, 0),
    Shape(8, 3, 20, 20, 8, 7, 7, 2, 2, 3, 3),
    Shape(3, 3, 64, 48, 20, 16, 16, 16, 16, 0, 0),  # patches: a large tile a channel
    Shape(3, 2, 40, 40, 5, 31, 31, 1, 1, 15, 15),
    Shape(8, 3, 5, 5, 8, 2, 2, 3, 3, 4, 4),  # more padding than kernel
    Shape(17, 36, 5, 12, 9, 1, 3, 3, 1, 3, 2),  # more stride than kernel
)


@fast
@given(
    shape=shapes,
    sparsity=st.sampled_from((0.0, 0.5, 0.8, 0.95, 1.0)),
    masked=st.booleans(),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_products(
    native: ModuleType, shape: Shape, sparsity: float, masked: bool, biased: bool, threads: int
) -> None:
    assume(min(shape.h + 2 * shape.pad_h - shape.r, shape.w + 2 * shape.pad_w - shape.s) >= 0)
    check_products(native, shape, sparsity, masked, biased, threads)


@pytest.mark.parametrize("shape", EXAMPLES, ids=str)
@pytest.mark.parametrize("sparsity", (0.5, 0.9))
def test_products_of_special_shapes(native: ModuleType, shape: Shape, sparsity: float) -> None:
    check_products(native, shape, sparsity, masked=sparsity > 0.5, biased=True, threads=2)


def check_products(
    native: ModuleType, shape: Shape, sparsity: float, masked: bool, biased: bool, threads: int
) -> None:
    """Run both products, and again on one thread, which must change no bit."""
    x = random(shape.n, shape.c, shape.h, shape.w, seed=1)
    weight = random(shape.k, shape.c, shape.r, shape.s, seed=2)
    grad = random(shape.n, shape.k, *shape.output, seed=3)
    bias = random(shape.k, seed=4) if biased else None
    threshold = float(weight.abs().quantile(sparsity)) if sparsity < 1 else 100.0
    kept = weight.abs() >= threshold
    mask = kept.byte() if masked else None
    sparse = weight * kept

    layer = Packed(native, shape, weight, threshold, mask, threads)
    y, grad_x = layer.forward(chwn(x), bias, threads), layer.grad_input(chwn(grad), threads)

    offset = bias if bias is not None else torch.zeros(shape.k)
    expected = dense_products(x, sparse, offset, grad, shape)
    magnitudes = dense_products(x.abs(), sparse.abs(), offset.abs(), grad.abs(), shape)
    check_close(y, expected[0], magnitudes[0])
    check_close(grad_x, expected[1], magnitudes[1])

    single = Packed(native, shape, weight, threshold, mask, threads=1)
    assert torch.equal(y, single.forward(chwn(x), bias))  # bit for bit, with any number of threads
    assert torch.equal(grad_x, single.grad_input(chwn(grad)))


def test_a_mask_decides_between_equal_weights(native: ModuleType) -> None:
    shape = Shape(16, 20, 6, 6, 10, 3, 3)
    mask = random(10, 20, 3, 3, seed=5) > 0
    x = chwn(random(16, 20, 6, 6, seed=6))
    y = Packed(native, shape, torch.ones(10, 20, 3, 3), mask=mask.byte()).forward(x)
    check_close(
        y,
        functional.conv2d(x.double(), mask.double(), padding=1),
        functional.conv2d(x.double().abs(), mask.double(), padding=1),
    )


def test_lists_fit_any_number_of_samples(native: ModuleType) -> None:
    weight = random(10, 20, 3, 3, seed=7)
    packed = Packed(native, Shape(16, 20, 8, 8, 10, 3, 3), weight, 1.0)
    other = Packed(native, Shape(5, 20, 8, 8, 10, 3, 3), weight, 1.0)
    x = chwn(random(5, 20, 8, 8, seed=8))
    expected = other.forward(x)
    other.lists = packed.lists
    assert torch.equal(other.forward(x), expected)


def test_weights_of_zero_are_not_kept(native: ModuleType) -> None:
    weight = random(10, 20, 3, 3, seed=9)
    weight[weight < 0] = 0
    Packed(native, Shape(16, 20, 8, 8, 10, 3, 3), weight)  # counts them


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(8, 3), (4, 3), (16, 3), (6, 1), (5, 2)])
def test_both_products_are_packed_together_as_they_are_apart(
    native: ModuleType, sizes: tuple[int, int], masked: bool
) -> None:
    side, kernel = sizes
    shape = Shape(16, 130, side, side, 67, kernel, kernel, pad_h=kernel // 2, pad_w=kernel // 2)
    weight = random(67, 130, kernel, kernel, seed=11)
    mask = weight.abs() > 0.7 if masked else None
    x, grad = chwn(random(16, 130, side, side, seed=12)), chwn(random(16, 67, *shape.output, seed=13))
    ways = [
        Packed(native, shape, weight, 0.7, mask, threads, together)
        for threads in (1, 3)
        for together in (True, False)
    ]
    results = [(way.forward(x), way.grad_input(grad)) for way in ways]
    for forward, grad_input in results[1:]:
        assert torch.equal(forward, results[0][0])
        assert torch.equal(grad_input, results[0][1])


@fast
@given(
    shape=shapes,
    threshold=st.sampled_from([0.0, 0.5, 1.0, 9.0]),
    threads=st.integers(1, 3),
    nan=st.booleans(),
)
def test_the_kept_weights_are_marked(
    native: ModuleType, shape: Shape, threshold: float, threads: int, nan: bool
) -> None:
    assume(min(shape.h + 2 * shape.pad_h - shape.r, shape.w + 2 * shape.pad_w - shape.s) >= 0)
    weight = random(shape.k, shape.c, shape.r, shape.s, seed=14)
    if nan:
        weight.view(-1)[-1] = float("nan")
    packed = Packed(native, shape, weight.nan_to_num(nan=9.0), threshold, threads=threads)
    to, nowhere = native.PackedWeights(*(t.data_ptr() for t in packed.lists[FORWARD])), native.PackedWeights()
    bits = torch.full(
        (shape.k, -(-weight[0].numel() // 16)), -1, dtype=torch.int16
    )  # every filter begins a word
    found = native.pack_weights(
        packed.sizes, weight.data_ptr(), 0, threshold, to, nowhere, bits.data_ptr(), threads
    )
    expected = ~(weight.abs() < max(threshold, SMALLEST))
    marked = (bits.unsqueeze(-1) >> torch.arange(16, dtype=torch.int16) & 1).bool().flatten(1)
    assert torch.equal(marked[:, : weight[0].numel()].view(weight.shape), expected)
    assert found.count == int(expected.sum())
    assert found.not_a_number == nan


def test_nan_is_not_hidden(native: ModuleType) -> None:
    weight = random(4, 4, 3, 3, seed=10)
    weight[2, 1, 1, 1] = float("nan")
    shape = Shape(16, 4, 6, 6, 4, 3, 3)
    native_shape = native.ConvShape(*astuple(shape), *shape.output)
    layer = Packed(native, shape, weight.nan_to_num())
    starts, values, offsets = layer.lists[FORWARD]
    pointers = starts.data_ptr(), values.data_ptr(), offsets.data_ptr()
    to, nowhere = native.PackedWeights(*pointers), native.PackedWeights()
    native.pack_weights(native_shape, weight.data_ptr(), 0, 0.5, to, nowhere, 0, 1)
    y = layer.forward(chwn(torch.ones(16, 4, 6, 6)))
    assert y[:, 2].isnan().all()
    assert not y[:, [0, 1, 3]].isnan().any()


def test_check_close_complains() -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError):
        check_close(x + 1e-4, x.double(), x.double())
    with pytest.raises(AssertionError):
        check_close(x * float("nan"), x.double(), x.double())
