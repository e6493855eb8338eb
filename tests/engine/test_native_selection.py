"""The k-th largest magnitude, its counts and its mask, against a plain sort."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draw(kind: str, n: int, seed: int) -> torch.Tensor:
    """Return n values as layers have them: smooth, half zeros, few different ones, all equal, or wild."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    if kind == "relu":
        return x.relu()
    if kind == "coarse":
        return (x * 4).round() / 4
    if kind == "equal":
        return torch.full((n,), -1.5)
    if kind == "wild":
        return x * torch.exp(20 * torch.randn(n, generator=generator))
    if kind == "sorted":
        return x.sort().values
    return x


KINDS = ["normal", "relu", "coarse", "equal", "wild", "sorted"]


def check_threshold(found, x: torch.Tensor, k: int) -> None:
    size = x.abs()
    assert found.value == size.sort(descending=True).values[k - 1].item()
    assert found.greater == (size > found.value).sum().item()
    assert found.equal == (size == found.value).sum().item()
    assert found.greater < k <= found.greater + found.equal
    assert not found.not_a_number


def check_lanes(native: ModuleType, groups: int, length: int, lanes: int, part: float, kind: str) -> None:
    x = draw(kind, groups * length * lanes, 1).view(groups, length, lanes)
    k = min(length, 1 + int(part * length))
    thresholds = torch.empty(groups, lanes)
    greater, equal = torch.empty(2, groups, lanes, dtype=torch.int64)
    nan = native.kth_largest_lanes(
        x.data_ptr(), groups, length, lanes, k, thresholds.data_ptr(), greater.data_ptr(), equal.data_ptr(), 2
    )
    assert not nan
    assert torch.equal(thresholds, x.abs().sort(dim=1, descending=True).values[:, k - 1])
    assert torch.equal(greater, (x.abs() > thresholds[:, None]).sum(1))
    assert torch.equal(equal, (x.abs() == thresholds[:, None]).sum(1))
    mask, ties = torch.empty_like(x, dtype=torch.bool), k - greater
    pointers = thresholds.data_ptr(), equal.data_ptr(), ties.data_ptr(), mask.data_ptr()
    native.magnitude_mask_lanes(x.data_ptr(), groups, length, lanes, *pointers, 2)
    rows = x.movedim(1, -1).flatten(0, 1)
    expected = torch.stack([expected_mask(row, k) for row in rows]).view(groups, lanes, length)
    assert torch.equal(mask, expected.movedim(-1, 1))


@fast
@given(n=st.integers(1, 3000), part=st.floats(0, 1), kind=st.sampled_from(KINDS), seed=st.integers(0, 9))
def test_kth_largest_is_exact(native: ModuleType, n: int, part: float, kind: str, seed: int) -> None:
    x, k = draw(kind, n, seed), min(n, 1 + int(part * n))
    check_threshold(native.kth_largest(x.data_ptr(), n, k, 1), x, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.0, 0.003, 0.2, 0.5, 0.999, 1.0])
def test_kth_largest_of_many_is_exact(native: ModuleType, kind: str, part: float) -> None:
    n = 150_001
    x = draw(kind, n, 3)
    k = max(1, int(part * n))
    check_threshold(native.kth_largest(x.data_ptr(), n, k, 1), x, k)


def test_threads_change_nothing(native: ModuleType) -> None:
    x = draw("normal", 200_000, 0)
    found = [native.kth_largest(x.data_ptr(), x.numel(), 40_000, threads) for threads in (1, 2, 3)]
    assert len({(f.value, f.greater, f.equal) for f in found}) == 1


@fast
@given(
    n=st.sampled_from([1, 17, 513, 2049, 9000, 40_000]),
    part=st.floats(0, 1),
    hint=st.sampled_from([0.0, 0.9, 0.99, 1.0, 1.01, 1.1, 50.0, float("nan"), float("inf"), -1.0]),
    kind=st.sampled_from(KINDS),
    threads=st.integers(1, 3),
)
def test_a_hint_changes_no_threshold(
    native: ModuleType, n: int, part: float, hint: float, kind: str, threads: int
) -> None:
    x, k = draw(kind, n, 8), min(n, 1 + int(part * n))
    exact = x.abs().sort(descending=True).values[k - 1].item()
    check_threshold(native.kth_largest_near(x.data_ptr(), n, k, exact * hint, threads), x, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drift", [0.0, 0.98, 1.0, 1.2])
def test_a_hint_changes_no_threshold_of_many(native: ModuleType, kind: str, drift: float) -> None:
    n, k = 600_011, 120_000
    x = draw(kind, n, 6)
    exact = x.abs().sort(descending=True).values[k - 1].item()
    check_threshold(native.kth_largest_near(x.data_ptr(), n, k, exact * drift, 3), x, k)


@pytest.mark.parametrize("last", [2.0**-149, 1e-40, 3.4e38, float(2**-126)])
def test_a_hint_at_the_ends_of_the_range(native: ModuleType, last: float) -> None:
    x = draw("wild", 5000, 2)
    x[:2000] = torch.linspace(0.5, 2, 2000) * last
    for k in (1, 1000, 2500, 5000):
        check_threshold(native.kth_largest_near(x.data_ptr(), 5000, k, last, 1), x, k)


@pytest.mark.parametrize("n", [5, 3000])
def test_the_largest_pattern_of_bits_is_counted(native: ModuleType, n: int) -> None:
    bits = torch.full((n,), 0x7FFFFFFF, dtype=torch.int32)  # a NaN
    bits[0] = 0
    found = native.kth_largest_near(bits.data_ptr(), n, n - 1, 1.0, 1)
    assert (found.greater, found.equal, found.not_a_number) == (0, n - 1, True)


@pytest.mark.parametrize("n", [7, 100_000])
def test_bad_k_is_refused(native: ModuleType, n: int) -> None:
    x = torch.randn(n)
    for k in (0, -1, n + 1):
        with pytest.raises(ValueError, match="k must lie between 1 and"):
            native.kth_largest(x.data_ptr(), n, k, 1)
        with pytest.raises(ValueError, match="k must lie between 1 and"):
            native.kth_largest_near(x.data_ptr(), n, k, 1.0, 1)


@pytest.mark.parametrize("n", [1, 33, 3000, 100_003])
def test_a_nan_is_seen(native: ModuleType, n: int) -> None:
    for place in (0, n // 2, n - 1):
        x = torch.randn(n)
        x[place] = float("nan")
        assert native.kth_largest(x.data_ptr(), n, 1, 1).not_a_number
        assert native.count_kept(x.data_ptr(), n, 0.5, 1).not_a_number
        for k, last in ((1, 1.0), ((n + 1) // 2, 0.674), (n, 0.0)):
            assert native.kth_largest_near(x.data_ptr(), n, k, last, 2).not_a_number
    infinite = torch.full((n,), float("inf"))
    assert not native.kth_largest(infinite.data_ptr(), n, n, 1).not_a_number
    assert not native.count_kept(infinite.data_ptr(), n, 0.5, 1).not_a_number


@fast
@given(
    groups=st.integers(1, 3),
    length=st.integers(1, 200),
    lanes=st.sampled_from([1, 2, 5, 16, 17, 33]),
    part=st.floats(0, 1),
    kind=st.sampled_from(KINDS),
)
def test_each_lane_has_its_own_threshold(
    native: ModuleType, groups: int, length: int, lanes: int, part: float, kind: str
) -> None:
    check_lanes(native, groups, length, lanes, part, kind)


@pytest.mark.parametrize(("length", "lanes"), [(40_000, 1), (33_000, 18)])
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_long_lanes(native: ModuleType, length: int, lanes: int, kind: str) -> None:
    check_lanes(native, 2, length, lanes, 0.3, kind)


def test_a_sampled_threshold_repeats_and_is_near(native: ModuleType) -> None:
    n, k, samples = 200_000, 40_000, 16_384
    x = draw("normal", n, 5)
    thresholds = [native.sampled_threshold(x.data_ptr(), n, k, samples, seed, 2) for seed in (0, 0, 1, 2)]
    assert thresholds[0] == thresholds[1]
    assert len(set(thresholds)) == 3
    for threshold in thresholds:
        kept = native.count_kept(x.data_ptr(), n, threshold, 1)
        assert abs((kept.greater + kept.equal) / n - k / n) < 5 * (0.2 * 0.8 / samples) ** 0.5


def test_a_sample_of_everything_is_exact(native: ModuleType) -> None:
    x = draw("normal", 1000, 7)
    for k in (1, 500, 1000):
        exact = native.kth_largest(x.data_ptr(), 1000, k, 1).value
        assert native.sampled_threshold(x.data_ptr(), 1000, k, 1000, 3, 1) == exact


@fast
@given(n=st.integers(0, 70_000), threshold=st.sampled_from([0.0, 0.25, 1.0]), kind=st.sampled_from(KINDS))
def test_count_kept(native: ModuleType, n: int, threshold: float, kind: str) -> None:
    x = draw(kind, n, 2)
    found = native.count_kept(x.data_ptr(), n, threshold, 2)
    assert (found.value, found.greater) == (threshold, (x.abs() > threshold).sum().item())
    assert found.equal == (x.abs() == threshold).sum().item()


@fast
@given(
    n=st.one_of(st.integers(0, 100), st.sampled_from([16_384, 16_385, 300_007])),
    kind=st.sampled_from(KINDS),
    threshold=st.sampled_from([0.0, 0.25, 1.0, float("inf")]),
    threads=st.integers(1, 3),
)
def test_entries_are_kept_by_size_and_by_mask(
    native: ModuleType, n: int, kind: str, threshold: float, threads: int
) -> None:
    x = draw(kind, n, 9)
    x[n // 3 : n // 3 + 2] = float("nan")
    x[n // 2 : n // 2 + 2] = -float("inf")
    guard = torch.full((n + 1,), 7.0)
    native.keep_large(x.data_ptr(), n, threshold, guard.data_ptr(), threads)
    large = np.where(~(np.abs(x.numpy()) < threshold), x.numpy(), np.float32(0))
    np.testing.assert_array_equal(guard[:n].numpy(), large)
    assert guard[n] == 7
    mask = torch.from_numpy(np.random.default_rng(n).integers(0, 3, n).astype(np.uint8))
    native.keep_marked(x.data_ptr(), mask.data_ptr(), n, guard.data_ptr(), threads)
    np.testing.assert_array_equal(guard[:n].numpy(), np.where(mask.numpy(), x.numpy(), np.float32(0)))
    assert guard[n] == 7
    native.keep_large(x.data_ptr(), n, threshold, x.data_ptr(), threads)  # in place
    np.testing.assert_array_equal(x.numpy(), large)


def expected_mask(x: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest magnitudes of x in logical order, ties to the lowest index: a stable sort."""
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[x.abs().flatten().sort(descending=True, stable=True).indices[:k]] = True
    return mask.view(x.shape)


@fast
@given(
    length=st.integers(1, 5000),
    lanes=st.sampled_from([1, 1, 3, 16, 130]),
    part=st.floats(0, 1),
    kind=st.sampled_from(KINDS),
    threads=st.integers(1, 3),
)
def test_mask_keeps_exactly_k_with_ties_to_the_lowest_logical_index(
    native: ModuleType, length: int, lanes: int, part: float, kind: str, threads: int
) -> None:
    memory = draw(kind, length * lanes, 4).view(length, lanes)
    logical = memory.t()
    k = min(logical.numel(), 1 + int(part * logical.numel()))
    found = native.kth_largest(memory.data_ptr(), memory.numel(), k, 1)
    mask = torch.empty(length, lanes, dtype=torch.bool)
    ties = k - found.greater
    native.magnitude_mask(memory.data_ptr(), length, lanes, found.value, ties, mask.data_ptr(), threads)
    assert torch.equal(mask.t(), expected_mask(logical.contiguous(), k))


def test_an_unknown_instruction_set_is_refused(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'neon' is not available .*available: .*plain"):
        native.force("neon")
