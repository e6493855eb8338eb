"""The products' benchmark: it multiplies what it says, and its figures follow from its samples."""

from __future__ import annotations

import statistics

import pytest
import torch

from torchswat.bench import peer
from torchswat.bench.products import (
    PRODUCTS,
    SHAPES,
    STANDARD,
    bench_products,
    bfloat16_absent,
    rounds,
)
from torchswat.engine.loader import engine
from torchswat.engine.race import contestants as race_of
from torchswat.errors import InvalidValue, MissingDependency, UnknownName


def test_every_product_at_every_sparsity(tiny):
    ticks: list[None] = []
    record = bench_products([tiny], (0.5, 0.8), repeats=2, tick=lambda: ticks.append(None))
    assert len(ticks) == rounds([tiny], 2) == 9
    assert [(row["product"], row["sparsity"]) for row in record.rows] == [
        (product, sparsity) for product in PRODUCTS for sparsity in (0.5, 0.8)
    ]
    dense_operations = 2 * 16 * 16 * 8 * 8 * 4 * 9
    for row in record.rows:
        sparsity, samples = row["sparsity"], row["samples"]
        medians = {name: statistics.median(times) for name, times in samples.items()}
        assert row["dense_ms"] == pytest.approx(min(medians["dense nchw"], medians["dense channels_last"]))
        assert row["sparse_ms"] == pytest.approx(medians[f"sparse {sparsity}"])
        assert row["packing_ms"] == pytest.approx(medians[f"packing {sparsity}"])
        assert row["speed_up"] == pytest.approx(row["dense_ms"] / row["sparse_ms"])
        assert row["limit"] == pytest.approx(1 / (1 - sparsity))
        assert row["gflops_equivalent"] == pytest.approx(dense_operations / row["sparse_ms"] / 1e6)
        assert row["gflops_nonzero"] / row["gflops_equivalent"] == pytest.approx(1 - sparsity, rel=0.01)
        assert (row["dense_bfloat16_ms"] is None) == (bfloat16_absent() is not None)
        assert all(len(times) == 2 for times in samples.values())
    for mean in record.summary:
        own = [row["speed_up"] for row in record.rows if row["sparsity"] == mean["sparsity"]]
        assert mean["speed_up"] == pytest.approx(statistics.geometric_mean(own)) and mean["products"] == 3
        assert mean["target"] is None  # targets are for the standard shapes
    assert bool(peer.absent()) == any("sparseprop" in remark for remark in record.remarks)


@pytest.mark.parametrize("product", PRODUCTS)
def test_both_sides_compute_the_same(product, tiny):
    place = PRODUCTS.index(product)
    sparse, dense = race_of(SHAPES[tiny], 0.7, seed=3)[place]
    torch.testing.assert_close(sparse(), dense(), rtol=1e-4, atol=1e-4)
    other, _ = race_of(SHAPES[tiny], 0.7, seed=4)[place]
    assert not torch.allclose(sparse(), other(), atol=0.1)


def test_without_the_engine_nothing_is_compared():
    with engine("reference"), pytest.raises(MissingDependency, match="compiled engine"):
        bench_products(STANDARD, repeats=1)


def test_the_standard_shapes_cost_the_same_and_are_listed():
    operations = {SHAPES[n].weight[0] * SHAPES[n].weight[1] * SHAPES[n].input[2] ** 2 for n in STANDARD}
    assert len(operations) == 1 and set(STANDARD) < set(SHAPES)


def test_what_is_not_in_the_list_is_refused_before_anything_runs():
    with pytest.raises(UnknownName, match="unknown shape '3x3_64': did you mean '3x3-64'"):
        bench_products(["3x3-512", "3x3_64"])
    with pytest.raises(InvalidValue, match="sparsity is 1"):
        bench_products(sparsities=[1])


def test_the_peer_where_it_is_installed(tiny):
    if peer.absent():
        pytest.skip(str(peer.absent()))
    shape = SHAPES[tiny]
    x, weight = torch.randn(shape.input), torch.randn(shape.weight)
    weight[weight.abs() < 1] = 0
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(x, weight, padding=1)
        for run in peer.contestants(shape, x, weight, 0.8).values():
            torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
