"""The kernel that selects weights in blocks, against the oracle and, bit by bit, against plain torch."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchswat.engine.block_masks import Blocks, block_sums, mask_of_blocks, select_blocks

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.sampled_from([1, 2, 4, 8])
KERNELS = st.sampled_from([(), (1, 1), (1, 2), (3, 3), (2, 4), (4, 4), (5, 7)])


@st.composite
def divisions(draw: st.DrawFn) -> tuple[tuple[int, ...], Blocks]:
    """Draw the shape of a weight, and how it is divided."""
    groups, filters = draw(st.integers(1, 3)), draw(st.integers(1, 19))
    shape = groups * filters, draw(st.integers(1, 40)), *draw(KERNELS)
    return shape, Blocks(draw(SIDES), draw(SIDES), groups)


def memory(last: float = -1.0) -> Tensor:
    """Return threshold, sparsity and density as a layer's state holds them."""
    return torch.tensor([last, 0.0, 1.0], dtype=torch.float64)


def call(
    native: ModuleType,
    weight: Tensor,
    blocks: Blocks,
    sparsity: float,
    words: Tensor,
    due: bool = True,
    exact: bool = True,
    frozen: bool = False,
):
    k = reference.kept_count(blocks.count(weight.shape), sparsity)
    return select_blocks(native, weight, blocks, words.data_ptr(), k, sparsity, due, exact, frozen)


def expected_mask(weight: Tensor, blocks: Blocks, sparsity: float) -> Tensor:
    """The blocks of the largest float32 sums, ties to the lowest index: a stable sort of plain torch's sums."""
    sums = block_sums(weight, blocks)
    kept = torch.zeros(sums.numel(), dtype=torch.bool)
    order = sums.flatten().sort(descending=True, stable=True).indices
    kept[order[: reference.kept_count(sums.numel(), sparsity)]] = True
    return mask_of_blocks(kept.view(sums.shape), weight, blocks)


@fast
@given(division=divisions(), sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.99]), seed=st.integers(0, 9))
def test_it_keeps_what_the_definition_says(native: ModuleType, division, sparsity, seed) -> None:
    """Of whole numbers sums are exact, so that ties are ties."""
    (shape, blocks), draw = division, torch.Generator().manual_seed(seed)
    weight = torch.randint(-4, 5, shape, generator=draw).float()
    mask, found = call(native, weight, blocks, sparsity, memory())
    reference.check_mask(mask, reference.top_blocks(weight, sparsity, blocks[:2], blocks.groups))
    assert found.count == mask.sum() and not found.not_a_number


@fast
@given(division=divisions(), spread=st.sampled_from([0.0, 1.0, 20.0]), seed=st.integers(0, 9))
def test_masks_are_bitwise_those_of_plain_torch(native: ModuleType, division, spread, seed) -> None:
    (shape, blocks), words, draw = division, memory(), torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw) * torch.exp(spread * torch.randn(shape, generator=draw))
    mask, found = call(native, weight, blocks, 0.7, words)
    assert torch.equal(mask, expected_mask(weight, blocks, 0.7))
    k = reference.kept_count(blocks.count(shape), 0.7)
    threshold = block_sums(weight, blocks).flatten().sort(descending=True).values[k - 1]
    assert found.limit == words[0] == threshold
    assert words[1] == 0.7 and words[2] == found.count / weight.numel()


LARGE = [(96, 700, 3, 3), (257, 1031), (3, 9000, 1, 5), (600, 5, 11, 11), (1030, 260, 1, 1)]


@pytest.mark.parametrize("block", [(1, 2), (2, 1), (2, 2), (4, 4), (8, 8), (1, 8)])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_weights_on_any_number_of_threads(native: ModuleType, shape, block, monkeypatch) -> None:
    weight, blocks = torch.randn(shape), Blocks(*block)
    expected = expected_mask(weight, blocks, 0.8)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(call(native, weight, blocks, 0.8, memory())[0], expected)


@pytest.mark.parametrize("drift", [0.5, 0.97, 1.0, 1.02, 3.0, math.inf])
def test_the_last_threshold_changes_no_mask(native: ModuleType, drift) -> None:
    weight, blocks, words = torch.randn(64, 64, 3, 3), Blocks(2, 2), memory()
    expected, found = call(native, weight, blocks, 0.8, words)
    words[0] = found.limit * drift
    assert torch.equal(call(native, weight, blocks, 0.8, words)[0], expected)
    assert words[0] == found.limit


def test_between_searches_all_of_the_last_threshold_are_kept(native: ModuleType) -> None:
    weight, blocks = torch.randint(-3, 4, (6, 6, 3, 3)).float(), Blocks(2, 2)
    words = memory(8.0)
    mask, found = call(native, weight, blocks, 0.5, words, due=False)
    assert torch.equal(mask, mask_of_blocks(block_sums(weight, blocks) >= 8, weight, blocks))
    assert words.tolist() == [8.0, 0.0, found.count / weight.numel()]
    call(native, weight, blocks, 0.5, nothing := memory(), due=False)
    assert nothing[0] > 0, "without a threshold it searches"


@pytest.mark.parametrize("due", [True, False])
def test_a_frozen_selection_remembers_nothing(native: ModuleType, due) -> None:
    words = memory(1.5)
    call(native, torch.randn(8, 8), Blocks(2, 2), 0.5, words, due=due, frozen=True)
    assert words.tolist() == [1.5, 0.0, 1.0]


def test_ties_are_all_kept_where_it_need_not_be_exact(native: ModuleType) -> None:
    weight = torch.ones(4, 4)
    assert call(native, weight, Blocks(2, 2), 0.5, memory())[0].sum() == 8
    assert call(native, weight, Blocks(2, 2), 0.5, memory(), exact=False)[0].all()


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (8, 1), (1, 8)])
@pytest.mark.parametrize("shape", [(5, 7), (6, 10, 3, 3)])
@pytest.mark.parametrize("due", [True, False])
def test_a_nan_is_seen_wherever_it_is(native: ModuleType, shape, block, due) -> None:
    for place in range(0, math.prod(shape), 7):
        weight = torch.randn(shape)
        weight.view(-1)[place] = -math.nan
        words = memory(1.0)
        assert call(native, weight, Blocks(*block), 0.5, words, due=due)[1].not_a_number
        assert words.tolist() == [1.0, 0.0, 1.0]
    infinite = torch.full(shape, -math.inf)
    assert not call(native, infinite, Blocks(*block), 0.5, memory(), due=due)[1].not_a_number


def test_it_writes_the_mask_and_nothing_beside_it(native: ModuleType) -> None:
    blocks, words = Blocks(2, 4), memory()
    weight = torch.randn(5, 6, 3, 3)
    guarded = np.full(weight.numel() + 64, 7, dtype=np.uint8)
    shape = native.Blocks(1, 5, 6, 9, 2, 4)
    at = words.data_ptr(), weight.data_ptr(), shape, 27, 0.5, True, True, False, guarded.ctypes.data + 32
    native.select_blocks(*at, 1)
    assert (guarded[:32] == 7).all() and (guarded[-32:] == 7).all()
    mask = torch.from_numpy(guarded[32:-32]).view(weight.shape).bool()
    assert torch.equal(mask, expected_mask(weight, blocks, 0.5))


def test_what_makes_no_sense_is_refused(native: ModuleType) -> None:
    weight, words, mask = torch.ones(4, 4), memory(), torch.empty(4, 4, dtype=torch.bool)

    def select(sides: tuple[int, int], k: int) -> None:
        shape = native.Blocks(1, 4, 4, 1, *sides)
        at = words.data_ptr(), weight.data_ptr(), shape, k
        native.select_blocks(*at, 0.5, True, True, False, mask.data_ptr(), 1)

    with pytest.raises(ValueError, match="sides of a block must be 1, 2, 4 or 8"):
        select((3, 2), 1)
    with pytest.raises(ValueError, match="k must lie between 1 and"):
        select((2, 2), 5)
