"""Values and bits against dense tensors with zeros, in the compiled kernels and in torch."""

# pyright: reportArgumentType=false

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchswat.engine import kept, saved
from torchswat.engine.loader import engine, native_for
from torchswat.engine.topk import Selection

fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENGINES = ["auto", "reference"]
lengths = st.one_of(st.integers(1, 300), st.sampled_from([65_535, 65_536, 65_537, 200_001]))


def keep(x: torch.Tensor, selection: Selection) -> tuple[torch.Tensor, int]:
    return saved.keep_flat(native_for(x), x, selection.mask, selection.threshold, -1)


def restore(buffer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return saved.restore_flat(native_for(like), buffer, like)


def layouts(size: tuple[int, int, int, int]) -> list[torch.Tensor]:
    """Return tensors with entries of that size: contiguous, channels last, CHWN, with gaps."""
    n, c, h, w = size
    return [
        torch.randn(size),
        torch.randn(size).contiguous(memory_format=torch.channels_last),
        torch.randn(c, h, w, n).permute(3, 0, 1, 2),
        torch.randn(n, c, h, 2 * w)[..., ::2],
    ]


@fast
@given(n=lengths, threshold=st.sampled_from([0.0, 0.5, 1.3, 9.0]), threads=st.integers(1, 3))
def test_kernels_keep_what_a_threshold_says(
    native: ModuleType, n: int, threshold: float, threads: int
) -> None:
    x, selection = torch.randn(n).clamp(min=-0.4), Selection(threshold=threshold)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        buffer, count = keep(x, selection)
        restored = restore(buffer, torch.full([n], 7.0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(restored, selection.kept(x))
    assert count == int((selection.kept(x) != 0).sum())
    assert buffer.untyped_storage().nbytes() == 8 * -(-n // 64) + 4 * count  # and not a byte more


@fast
@given(n=lengths, density=st.sampled_from([0.0, 0.2, 1.0]))
def test_kernels_keep_what_a_mask_says(native: ModuleType, n: int, density: float) -> None:
    x, mask = torch.randn(n), torch.rand(n) < density
    x[::7] = 0
    buffer, _ = keep(x, Selection(mask))
    assert torch.equal(restore(buffer, torch.empty(n)), x * mask)


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_layout_and_dtype_in_every_engine(which: str, dtype: torch.dtype) -> None:
    for x in layouts((5, 3, 4, 6)):
        x = x.to(dtype)
        selection = Selection(mask=torch.rand(x.shape) < 0.3)
        with engine(which):
            for chosen in (selection, Selection(threshold=0.8)):
                buffer, _ = keep(x, chosen)
                like = torch.empty_strided(x.shape, x.stride(), dtype=dtype)
                assert torch.equal(restore(buffer, like), chosen.kept(x))


@pytest.mark.parametrize("which", ENGINES)
def test_not_a_number_is_kept_by_a_mask_and_infinity_by_a_threshold(which: str) -> None:
    with engine(which):
        x = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
        values = keep(x, Selection(mask=torch.tensor([False, True, True, True])))[0][8:].view(torch.float32)
        assert values.isnan().tolist() == [True, False] and values[1] == float("inf")
        assert keep(x, Selection(threshold=2.0))[0][-4:].view(torch.float32).tolist() == [float("inf")]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_what_they_were_packed_from(marks: list[bool]) -> None:
    bits = saved.pack_bits(torch.tensor(marks))
    assert bits.numel() == -(-len(marks) // 8)
    assert saved.unpack_bits(bits, len(marks)).tolist() == marks


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_rectified_tensor_and_its_gradient(which: str, inplace: bool) -> None:
    for x in layouts((5, 3, 4, 6)):
        x[0, 0, 0, 0], gradient = float("nan"), torch.randn(x.shape)
        expected = torch.where(x <= 0, 0.0, x)
        with engine(which):
            y, bits = kept.rectify(x if inplace else x.clone(), inplace)
            found = kept.rectified_gradient(gradient, bits, kept.dense_strides(y))
        assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(found, torch.where(expected == 0, 0.0, gradient))
        assert bits.untyped_storage().nbytes() <= 8 * -(-x.numel() // 64)
