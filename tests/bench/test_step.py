"""The benchmark of whole steps: every contestant is there, and periods are averaged over."""

from __future__ import annotations

import pytest
import torch

from torchswat import models, sparsify_
from torchswat.bench.step import SEARCHES, Search, Step, _over_period, bench_step, rounds
from torchswat.convert import sparse_layers
from torchswat.errors import InvalidValue, UnknownName


def test_dense_in_every_way_and_sparse_with_every_search(tiny):
    ticks: list[None] = []
    record = bench_step([tiny], (0.5, 0.8), repeats=1, tick=lambda: ticks.append(None))
    assert len(ticks) == rounds([tiny], 1)
    dense = {row["how"]: row for row in record.rows if row["algorithm"] == "dense"}
    assert {"nchw", "channels_last"} <= set(dense)
    sparse = [row for row in record.rows if row["algorithm"] == "swat"]
    assert [(row["sparsity"], row["how"]) for row in sparse] == [
        (sparsity, str(search)) for sparsity in (0.5, 0.8) for search in SEARCHES
    ]
    best = min(dense["nchw"]["step_ms"], dense["channels_last"]["step_ms"])
    for row in record.rows:
        assert row["speed_up"] == pytest.approx(best / row["step_ms"])
        assert row["images_per_second"] == pytest.approx(16_000 / row["step_ms"])
    for row in sparse:
        parts = row["breakdown_ms"]
        assert parts["products"] > 0 and parts["selection"] > 0 and parts["optimizer"] > 0
        assert parts["saving"] > 0
        share = parts["selection"] / sum(parts.values())
        assert row["finding_share"] == pytest.approx(share)


def test_a_step_learns_and_leaves_the_layer_as_it_was():
    model = sparsify_(models.create("resnet-digits"), sparsity=0.5, period=10)
    step = Step(model, torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    before = [parameter.clone() for parameter in model.parameters()]
    step(0)
    assert all(not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))
    assert {layer.sparse.iteration for _, layer in sparse_layers(model)} == {1}


def test_a_period_is_one_search_and_the_rest_not():
    search = Search("histogram", 10)
    times = {"swat 0.8 histogram:10 search": [100.0, 200.0], "swat 0.8 histogram:10 reuse": [10.0, 20.0]}
    assert _over_period(times, 0.8, search) == pytest.approx([19.0, 38.0])
    assert Search("sample", 1).iterations() == {0: 1.0}


def test_searches_by_name():
    assert Search.parse("sample") == Search("sample", 1)
    narrow = Search.parse("histogram:2+bfloat16+1x4")
    assert narrow == Search("histogram", 2, True, (1, 4)) and str(narrow) == "histogram:2+bfloat16+1x4"
    for unreadable in ("sample+bfloat", "sample+3", "sample+3x3"):
        with pytest.raises(InvalidValue):
            Search.parse(unreadable)
    assert Search.parse("histogram:10") == Search("histogram", 10)
    with pytest.raises(InvalidValue, match="METHOD:PERIOD"):
        Search.parse("sample:often")
    with pytest.raises(InvalidValue, match="period is 0"):
        Search.parse("sample:0")
    with pytest.raises(UnknownName, match="did you mean 'sample'"):
        Search.parse("sampel")


def test_what_is_not_in_the_list_is_refused_before_anything_runs():
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        bench_step(["resnet_18"])
    with pytest.raises(InvalidValue, match="sparsity is 1"):
        bench_step(sparsities=[1])
