"""Selection against a full stable sort, over every scope, method, dtype, shape and memory layout."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from torchswat.engine.loader import engine
from torchswat.engine.state import new_state
from torchswat.errors import InvalidValue, NotFinite, UnknownName
from torchswat.selection import APPROXIMATE, METHODS, SCOPES, Selector, kept_count, kth_largest, select

EXACT = [method for method in METHODS if method not in APPROXIMATE]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ENGINES = ["auto", "reference"]
NAN = float("nan")

shapes = st.lists(st.integers(0, 6), max_size=5).map(tuple)
sparsities = st.integers(0, 99).map(lambda percent: percent / 100)
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0, -2.0, 6e-8, 1e4, float("inf"), float("-inf")])
"""Few values, so that ties are the rule."""


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same tensor in another memory layout."""
    if layout == "transposed":
        return (
            tensor.permute(tuple(reversed(range(tensor.dim()))))
            .contiguous()
            .permute(tuple(reversed(range(tensor.dim()))))
        )
    if layout == "chwn" and tensor.dim():
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "with gaps" and tensor.dim():
        return torch.stack([tensor, tensor + 7], dim=-1)[..., 0]
    return tensor


layouts = st.sampled_from(["contiguous", "transposed", "chwn", "channels last", "with gaps"])


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any shape and layout: all ties, all different, or all equal."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    entries = int(np.prod(shape, dtype=int))
    kind = draw(st.sampled_from(["ties", "normal", "equal"]))
    if kind == "ties":
        few = draw(st.lists(values, min_size=min(entries, 40), max_size=min(entries, 40)))
        flat = torch.tensor(few * (entries // 40 + 1))[:entries]
    elif kind == "normal":
        flat = torch.randn(entries, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    else:
        flat = torch.full((entries,), draw(values))
    return laid_out(flat.to(dtype).view(shape), draw(layouts))


@given(tensors(), sparsities, st.sampled_from(SCOPES), st.sampled_from(EXACT), st.sampled_from(ENGINES))
@example(torch.tensor(3.0), 0.5, "hw", "histogram", "auto")
@example(torch.ones(2, 3, 4, 4), 0.5, "nchw", "sort", "auto")
def test_every_exact_method_agrees_with_a_full_sort(tensor, sparsity, scope, method, which):
    with engine(which):
        mask = select(tensor, sparsity, scope, method)
    reference.check_mask(mask, reference.top_k(tensor, sparsity, scope))


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "chwn"])
def test_every_exact_method_on_rows_longer_than_a_histogram(method, dtype, layout, which):
    tensor = laid_out(
        torch.randn(6, 5, 20, 16).relu().to(dtype), layout
    )  # half zeros; 16-bit floats tie often
    with engine(which):
        for sparsity in (0.3, 0.8):  # below and above the share of zeros
            mask = select(tensor, sparsity, "nchw", method)
            reference.check_mask(mask, reference.top_k(tensor, sparsity, "nchw"))
        mask = select(tensor.flatten(1).repeat(1, 2), 0.8, "chw", method)
        reference.check_mask(mask, reference.top_k(tensor.flatten(1).repeat(1, 2), 0.8, "chw"))


@given(tensors(), st.sampled_from(SCOPES), st.sampled_from(EXACT), st.data())
def test_kth_largest_is_the_kth_of_a_sort(tensor, scope, method, data):
    length = reference.row_length(tuple(tensor.shape), scope)
    assume(tensor.numel() > 0)
    k = data.draw(st.sampled_from([1, (length + 1) // 2, length]))
    found = kth_largest(tensor, k, scope=scope, method=method)
    rows = np.sort(np.abs(reference.array(tensor)).reshape(-1, length), axis=1)[:, ::-1]
    assert found.dtype == tensor.dtype and torch.broadcast_shapes(found.shape, tensor.shape) == tensor.shape
    assert (reference.array(found).reshape(-1) == rows[:, k - 1]).all()


@given(st.integers(0, 10**9), sparsities)
@example(90, 0.7)
def test_kept_count_is_that_of_the_written_number(entries, sparsity):
    assert kept_count(entries, sparsity) == reference.kept_count(entries, sparsity)


@given(tensors(), st.sampled_from(SCOPES), st.sampled_from(list(METHODS)))
def test_sparsity_zero_keeps_everything(tensor, scope, method):
    assert select(tensor, 0, scope, method).all()


@pytest.mark.parametrize("which", ENGINES)
@given(tensors(), st.integers(0, 10**6), st.sampled_from(SCOPES), st.sampled_from(list(METHODS)))
def test_nan_anywhere_is_an_error(which, tensor, place, scope, method):
    assume(tensor.numel() > 0)
    tensor = tensor.clone()
    tensor[np.unravel_index(place % tensor.numel(), tensor.shape)] = NAN
    with engine(which), pytest.raises(NotFinite, match="NaN"):
        select(tensor, 0.5, scope, method)


def test_the_sample_is_near_the_density_asked_for_and_repeats():
    tensor = torch.randn(64, 64, 8, 8)
    for sparsity in (0.5, 0.9):
        mask = select(tensor, sparsity, method="sample")
        assert torch.equal(mask, select(tensor, sparsity, method="sample"))
        assert abs(float(mask.float().mean()) - (1 - sparsity)) < 0.01
        assert tensor[mask].abs().min() > tensor[~mask].abs().max()


@given(tensors(), sparsities)
def test_the_sample_of_a_small_tensor_is_a_threshold(tensor, sparsity):
    mask = select(tensor, sparsity, method="sample").numpy()
    exact = reference.top_k(tensor, sparsity)
    assert (mask | ~exact).all(), "something larger than the threshold was dropped"
    magnitudes = np.abs(reference.array(tensor))
    if exact.any():
        assert (mask == (magnitudes >= magnitudes[exact].min())).all()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 80, NAN, "0.8", None, True])
def test_sparsity_outside_its_range(sparsity):
    with pytest.raises(InvalidValue, match="from 0") as error:
        select(torch.ones(4), sparsity)
    assert repr(sparsity) in str(error.value)


def test_unknown_names_and_dtypes():
    with pytest.raises(UnknownName, match="did you mean 'nchw'"):
        select(torch.ones(4), 0.5, scope="nchv")
    with pytest.raises(UnknownName, match="did you mean 'histogram'"):
        select(torch.ones(4), 0.5, method="histogramm")
    with pytest.raises(InvalidValue, match=r"int64.*float32"):
        select(torch.ones(4, dtype=torch.int64), 0.5)
    with pytest.raises(InvalidValue, match="k = 5"):
        kth_largest(torch.ones(4), 5)


# ---- over iterations ---------------------------------------------------------------------------------------


def drifting(iteration: int) -> torch.Tensor:
    """Values that grow, so that each iteration has another threshold."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(iteration)) * (1 + iteration)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_threshold_is_searched_every_period_and_reused_between(scope):
    selector = Selector(scope=scope, period=4, warmup=3)
    searched = []
    for iteration in range(13):
        before = selector.threshold
        mask = selector(drifting(iteration), 0.75, iteration)
        if selector.threshold is not before:
            searched.append(iteration)
            reference.check_mask(mask, reference.top_k(drifting(iteration), 0.75, scope))
        else:
            assert torch.equal(mask, drifting(iteration).abs() >= selector.threshold)
        assert float(selector.density) == pytest.approx(float(mask.float().mean()))
    assert searched == [0, 1, 2, 4, 8, 12]


def test_period_one_searches_every_time():
    selector = Selector()
    for iteration in (0, 1, 2, 2):
        reference.check_mask(
            selector(drifting(iteration), 0.6, iteration), reference.top_k(drifting(iteration), 0.6)
        )


def test_a_smaller_last_batch_is_searched_anew_where_rows_are_samples():
    selector = Selector(scope="chw", period=100)
    selector(drifting(0), 0.5, 0)
    mask = selector(drifting(1)[:3], 0.5, 1)
    reference.check_mask(mask, reference.top_k(drifting(1)[:3], 0.5, "chw"))


@pytest.mark.parametrize("which", ENGINES)
def test_nan_between_searches_is_an_error_too(which):
    selector = Selector(period=10)
    tensor = drifting(0)
    with engine(which):
        selector(tensor, 0.5, 0)
        tensor[1, 2, 3, 4] = NAN
        with pytest.raises(NotFinite, match=r"the weight of layer 'c'.*NaN"):
            selector(tensor, 0.5, 1, "the weight of layer 'c'")


@pytest.mark.parametrize("exact", [True, False])
def test_ties_stay_together_only_where_exactness_is_not_asked_for(exact):
    mask = Selector(exact=exact)(torch.tensor([2.0, -2.0, 2.0, 1.0]), 0.5, 0)
    assert mask.tolist() == ([True, True, False, False] if exact else [True, True, True, False])


def test_a_selector_goes_on_from_the_thresholds_of_another():
    first, second = Selector(period=5), Selector(period=5)
    first(drifting(0), 0.5, 0)
    second.rows = first.rows
    assert torch.equal(second.threshold, first.threshold)
    for iteration in range(1, 7):
        masks = [s(drifting(iteration), 0.5, iteration) for s in (first, second)]
        assert torch.equal(*masks)


@pytest.mark.parametrize("kind", [{}, {"random": True}, {"period": 3}])
def test_an_empty_batch_has_an_empty_mask(kind):
    assert Selector(**kind)(torch.ones(0, 3, 4, 4), 0.5, 0).shape == (0, 3, 4, 4)


# ---- random masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_random_keeps_exactly_k_of_every_row_and_repeats_for_an_iteration(scope):
    tensor, selector = torch.zeros(4, 3, 5, 5), Selector(scope=scope, random=True)
    first, second = selector(tensor, 0.7, 0), selector(tensor, 0.7, 1)
    length = reference.row_length((4, 3, 5, 5), scope)
    assert (first.view(-1, length).sum(1) == reference.kept_count(length, 0.7)).all()
    assert not torch.equal(first, second)
    torch.manual_seed(7)  # of no effect: every process draws the same
    assert torch.equal(first, selector(tensor, 0.7, 0))


def test_random_differs_by_seed_and_by_name_and_leaves_the_global_generator_alone():
    tensor, before = torch.zeros(4, 3, 5, 5), torch.get_rng_state()
    one, other = (Selector(random=True, state=new_state(seed)) for seed in (1, 2))
    masks = [one(tensor, 0.5, 0, "a"), one(tensor, 0.5, 0, "b"), other(tensor, 0.5, 0, "a")]
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])
    assert torch.equal(masks[0], Selector(random=True, state=new_state(1))(tensor, 0.5, 0, "a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_selection_that_is_not_remembered_moves_nothing():
    for kind in ({}, {"random": True}, {"period": 3, "scope": "chw"}):
        selector = Selector(**kind)
        selector(drifting(0), 0.5, 0)
        rows, density, state = selector.rows, selector.density, selector.state.clone()
        selector(drifting(1), 0.75, 3, remember=False)
        assert selector.rows is rows and selector.density == density
        assert torch.equal(selector.state, state)


def test_random_is_uniform():
    """Chi-square over 20 places, 2000 draws of 5 of them; fixed numbers, bound of 99%."""
    selector, tensor = Selector(random=True), torch.zeros(20)
    counts = sum(selector(tensor, 0.75, i).double() for i in range(2000))
    assert isinstance(counts, torch.Tensor)
    expected = 2000 * 5 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 36.2  # 19 degrees of freedom


@pytest.mark.parametrize("kind", [{}, {"exact": False}, {"random": True}, {"period": 2}, {"method": "sort"}])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layout", ["channels last", "chwn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mask_lies_in_memory_as_its_tensor_does(kind, scope, layout, dtype):
    """Compiled kernels read both side by side; half the entries are tied at zero."""
    selector, tensor = Selector(scope=scope, **kind), laid_out(drifting(0).relu().to(dtype), layout)
    for iteration in (0, 1):
        assert selector(tensor, 0.3, iteration).stride() == tensor.stride()


def test_random_refuses_nan():
    with pytest.raises(NotFinite, match="NaN"):
        Selector(random=True)(torch.tensor([1.0, NAN]), 0.5, 0)
