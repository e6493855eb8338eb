"""The benchmark of selection: every method, and all exact ones find the same."""

from __future__ import annotations

import pytest

from torchswat.bench.selection import bench_selection, rounds
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue
from torchswat.selection import METHODS


def test_every_method_finds_the_threshold():
    ticks: list[None] = []
    record = bench_selection([1000, 5000], sparsity=0.7, repeats=2, tick=lambda: ticks.append(None))
    assert len(ticks) == rounds([1000, 5000], 2)
    for size in (1000, 5000):
        rows = {row["method"]: row for row in record.rows if row["entries"] == size}
        assert {f"{method} (reference)" for method in METHODS} < set(rows)
        assert {"torch.topk", "torch.kthvalue", "numpy.partition"} < set(rows)
        for name, row in rows.items():
            assert row["density"] == pytest.approx(0.3, abs=0.05 if "sample" in name else 1e-6), name
            assert row["gigabytes_per_second"] == pytest.approx(4 * size / row["ms"] / 1e6)
            assert len(row["samples"][name]) == 2


def test_without_the_compiled_engine_the_reference_alone():
    with engine("reference"):
        record = bench_selection([1000], repeats=1)
    assert not [row for row in record.rows if "native" in row["method"]]
    assert "no native methods" in record.remarks[0]


def test_a_wrong_sparsity():
    with pytest.raises(InvalidValue, match="sparsity is 1"):
        bench_selection([1000], sparsity=1)
