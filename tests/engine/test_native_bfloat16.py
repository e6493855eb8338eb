"""The kernels that multiply pairs of bfloat16, against float64 on the same rounded operands."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.chwn_layout import chwn, empty_chwn

fast = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROUNDING = 2.0**-8
"""Of a bfloat16 result, relative to the largest."""


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw n, c, h, w, k, r, s, stride and padding; n is even."""
    r, s = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 3), (5, 1)]))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    h, w = draw(st.sampled_from([(2, 2), (4, 4), (8, 8), (5, 9), (15, 14), (1, 1)]))
    h, w = max(h, r - 2 * padding), max(w, s - 2 * padding)
    n = 2 * draw(st.sampled_from([1, 3, 8, 16, 17]))
    c, k = draw(st.sampled_from([1, 2, 3, 16, 33])), draw(st.sampled_from([1, 2, 5, 17, 32]))
    return n, c, h, w, k, r, s, stride, padding


class Case:
    """A convolution with random operands, what is kept of them, and its three products in float64."""

    def __init__(self, native: ModuleType, sizes: tuple[int, ...], sparsity: float) -> None:
        n, c, h, w, k, r, s, stride, padding = sizes
        p, q = (h + 2 * padding - r) // stride + 1, (w + 2 * padding - s) // stride + 1
        self.shape = native.ConvShape(n, c, h, w, k, r, s, stride, stride, padding, padding, p, q)
        self.x, self.gradient = (
            chwn(torch.randn(n, c, h, w)).bfloat16(),
            chwn(torch.randn(n, k, p, q)).bfloat16(),
        )
        self.weight, self.bias = torch.randn(k, c, r, s), torch.randn(k)
        self.threshold = float(self.weight.abs().flatten().quantile(sparsity))
        self.kept = self.weight.abs() >= self.threshold
        self.x_threshold = float(self.x.abs().float().quantile(sparsity, interpolation="higher"))
        self.geometry = (stride, stride), (padding, padding)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, and gradients of input and weight, in float64."""
        weight = (self.weight * self.kept).bfloat16().double()
        x = self.x.double().contiguous()
        y = F.conv2d(x, weight, self.bias.double(), *self.geometry)
        selected = torch.where(self.x.abs() >= self.x_threshold, self.x, 0).double().contiguous()
        geometry = *self.geometry, (1, 1), False, (0, 0), 1
        backward = torch.ops.aten.convolution_backward
        gradient = self.gradient.double().contiguous()
        of_x = backward(gradient, x, weight, None, *geometry, (True, False, False))[0]
        return y, of_x, backward(gradient, selected, weight, None, *geometry, (False, True, False))[1]


def compress(
    native: ModuleType, x: Tensor, threshold: float, factors: tuple[Tensor, Tensor] | None = None, threads=2
):
    """Return values, bits and starts of the pairs that are kept, and what was counted."""
    n, c, h, w = x.shape
    scale, shift = (0, 0) if factors is None else (factor.data_ptr() for factor in factors)
    which = x.data_ptr(), scale, shift, threshold, c, h * w, n
    counts, starts = torch.empty(c * n // 2, dtype=torch.int32), torch.empty(c + 1, dtype=torch.int64)
    found = native.compress_count_pairs(*which, counts.data_ptr(), starts.data_ptr(), threads)
    values = torch.full((int(starts[-1]),), torch.nan)
    bits = torch.zeros(c * -(-h * w // 16) * n // 2, dtype=torch.int16)
    at = counts.data_ptr(), starts.data_ptr(), values.data_ptr(), bits.data_ptr()
    native.compress_fill_pairs(*which, *at, threads)
    return (values, bits, starts), found


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether the largest error is within `tolerance` of the largest entry."""
    return float((found.double() - expected).abs().max()) <= tolerance * float(expected.abs().max()) + 1e-6


@fast
@given(sizes=convolutions(), sparsity=st.sampled_from([0.0, 0.5, 0.9]), threads=st.integers(1, 3))
def test_products_are_those_of_float64_on_rounded_operands(
    native: ModuleType, sizes: tuple[int, ...], sparsity: float, threads: int
) -> None:
    case = Case(native, sizes, sparsity)
    y, grad_x = empty_chwn(tuple(case.gradient.shape)).bfloat16(), empty_chwn(tuple(case.x.shape)).bfloat16()
    grad_weight = torch.empty_like(case.weight)
    of_weight = case.weight.data_ptr(), 0, case.threshold
    packed = native.sparse_forward_pairs(
        case.shape, case.x.data_ptr(), *of_weight, case.bias.data_ptr(), y.data_ptr(), threads
    )
    native.sparse_grad_input_pairs(
        case.shape, case.gradient.data_ptr(), *of_weight, grad_x.data_ptr(), threads
    )
    form, found = compress(native, case.x, case.x_threshold, threads=threads)
    at = *(part.data_ptr() for part in form), case.gradient.data_ptr(), grad_weight.data_ptr()
    native.grad_weight_pairs(case.shape, *at, threads)
    expected = case.expected()
    assert packed.count == int(case.kept.count_nonzero())
    assert found.count == int((case.x.abs() >= case.x_threshold).count_nonzero()) and not found.not_a_number
    assert close(y, expected[0], ROUNDING) and close(grad_x, expected[1], ROUNDING)
    assert close(grad_weight, expected[2], 1e-5)


@fast
@given(sizes=convolutions(), by_mask=st.booleans())
def test_a_mask_selects_what_it_marks_and_never_a_zero(
    native: ModuleType, sizes: tuple[int, ...], by_mask: bool
) -> None:
    case = Case(native, sizes, 0.5)
    case.weight[torch.rand(case.weight.shape) < 0.3] = 0.0
    mask = torch.rand(case.weight.shape) < 0.5
    weight = torch.where(mask, case.weight, 0)
    results = []
    for operand, marks in ((case.weight, mask.data_ptr()), (weight, 0)):
        y = empty_chwn(tuple(case.gradient.shape)).bfloat16()
        found = native.sparse_forward_pairs(
            case.shape, case.x.data_ptr(), operand.data_ptr(), marks, 1e-45, 0, y.data_ptr(), 2
        )
        assert found.count == int(weight.count_nonzero())
        results.append(y)
    assert torch.equal(*results)


@fast
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    threshold=st.sampled_from([2.0**-133, 0.5, 2.0]),
    rectified=st.booleans(),
    threads=st.integers(1, 3),
)
def test_pairs_are_expanded_to_what_was_kept(
    native: ModuleType, size: tuple[int, int, int, int], threshold: float, rectified: bool, threads: int
) -> None:
    pairs, c, h, w = size
    x, scale, shift = chwn(torch.randn(2 * pairs, c, h, w)).bfloat16(), torch.randn(c), torch.randn(c)
    y, factors = x, None
    if rectified:  # one rounding of the product and the sum, as fused multiply-add has, and one to bfloat16
        factors = scale, shift
        wide = x.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
        y = wide.float().relu().bfloat16()
    form, found = compress(native, x, threshold, factors, threads)
    again = empty_chwn((2 * pairs, c, h, w)).bfloat16()
    native.expand(*(part.data_ptr() for part in form), c, h * w, pairs, again.data_ptr(), threads)
    expected = torch.where(y.abs() >= threshold, y, 0)
    if rectified:  # sets without fused multiply-add round twice, which may move a value by one step
        assert (again - expected).abs().max() <= 2.0**-7 * max(1.0, float(y.abs().max()), threshold)
    else:
        assert torch.equal(again, expected) and found.count == int(expected.count_nonzero())


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_told(native: ModuleType, place: int) -> None:
    x = chwn(torch.randn(4, 2, 3, 3)).bfloat16()
    x[place, 1, 2, 2] = torch.nan
    form, found = compress(native, x, 10.0)
    assert found.not_a_number and found.count == 1 and len(form[0]) == 1


@fast
@given(
    n=st.sampled_from([1, 2, 31, 33, 1000, 40_000]),
    share=st.floats(0.01, 1),
    kind=st.sampled_from(["normal", "rectified", "few values", "zeros", "wide"]),
    drift=st.sampled_from([0.0, 0.5, 0.97, 1.0, 1.02, 3.0]),
    threads=st.integers(1, 3),
)
def test_the_kth_largest_is_exact_with_and_without_a_hint(
    native: ModuleType, n: int, share: float, kind: str, drift: float, threads: int
) -> None:
    x = torch.randn(n)
    if kind == "rectified":
        x = x.relu()
    elif kind == "few values":
        x = x.round()
    elif kind == "zeros":
        x = torch.zeros(n)
    elif kind == "wide":
        x = torch.exp(20 * x)
    x = x.bfloat16()
    k = max(1, int(share * n))
    expected = float(x.abs().float().sort(descending=True).values[k - 1])
    memory = torch.tensor([drift * expected if drift else -1.0, 0.0, 0.0], dtype=torch.float64)
    found = native.select_bf16(memory.data_ptr(), x.data_ptr(), n, k, 0.5, True, False, threads)
    assert memory[0] == expected and found.ties == -1 and not found.not_a_number
    assert found.limit == max(expected, 2.0**-133)
    if expected > 0:
        assert found.count == int((x.abs() >= expected).count_nonzero())
    counted = native.count_kept_bf16(x.data_ptr(), n, found.limit, threads)
    assert counted.greater == int((x.abs() >= found.limit).count_nonzero()) and not counted.not_a_number
    again = native.select_bf16(memory.data_ptr(), x.data_ptr(), n, k, 0.5, False, False, threads)
    assert again.limit == found.limit and again.count == -1


@pytest.mark.parametrize("threshold", [1.0, 1.003, 1.0078125, 2.0**-140, 3e38])
def test_a_threshold_between_two_entries_counts_those_above_it(native: ModuleType, threshold: float) -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 1.0078125, -1.015625, torch.inf]).bfloat16()
    found = native.count_kept_bf16(x.data_ptr(), len(x), threshold, 1)
    assert found.greater == int((x.double().abs() >= threshold).count_nonzero())


def test_a_nan_among_what_is_selected_from_is_told(native: ModuleType) -> None:
    for n in (5, 40_000):
        x = torch.randn(n).bfloat16()
        memory = torch.full((3,), -1.0, dtype=torch.float64)
        for _ in range(2):  # without a hint, and with one
            x[n // 2] = torch.nan
            found = native.select_bf16(
                memory.data_ptr(), x.data_ptr(), n, max(1, n // 5), 0.8, True, False, 2
            )
            assert found.not_a_number
            x[n // 2] = 0.0
            native.select_bf16(memory.data_ptr(), x.data_ptr(), n, max(1, n // 5), 0.8, True, False, 2)


@fast
@given(
    n=st.sampled_from([1, 63, 64, 65, 300, 70_000]),
    threshold=st.sampled_from([0.0, 0.75]),
    masked=st.booleans(),
)
def test_flat_bfloat16_is_kept_and_scattered_again(
    native: ModuleType, n: int, threshold: float, masked: bool
) -> None:
    x = torch.randn(n).bfloat16()
    x[torch.rand(n) < 0.2] = 0.0
    mask = torch.rand(n) < 0.5
    bits = torch.zeros(-(-n // 64), dtype=torch.int64)
    starts = torch.empty(native.kept_parts(n) + 1, dtype=torch.int64)
    marks = mask.data_ptr() if masked else 0
    count = native.mark_kept_bf16(
        x.data_ptr(), marks, max(threshold, 1e-45), n, bits.data_ptr(), starts.data_ptr(), 2
    )
    values = torch.empty(count, dtype=torch.bfloat16)
    native.gather_kept_bf16(x.data_ptr(), bits.data_ptr(), starts.data_ptr(), n, values.data_ptr(), 2)
    again = torch.full((n,), torch.nan, dtype=torch.bfloat16)
    native.scatter_kept_bf16(values.data_ptr(), bits.data_ptr(), n, again.data_ptr(), 2)
    kept = mask if masked else x.abs() >= max(threshold, 1e-45)
    assert torch.equal(again, torch.where(kept, x, 0)) and count == int(again.count_nonzero())


def test_an_odd_number_of_samples_is_refused(native: ModuleType) -> None:
    shape = native.ConvShape(3, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1)
    with pytest.raises(ValueError, match="even"):
        native.grad_weight_pairs(shape, 0, 0, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="even"):
        native.compress_count_pairs(0, 0, 0, 1.0, 1, 1, 3, 0, 0, 1)
