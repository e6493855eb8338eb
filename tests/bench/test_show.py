"""The tables and the bar of the benchmarks."""

from __future__ import annotations

import io

from rich.console import Console

from torchswat.bench.products import bench_products
from torchswat.bench.show import _ms, bar, circumstances_line, tables


def test_a_bar_on_a_terminal_alone():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with bar(console, "products", total=4) as tick:
            tick()
        assert ("1/4" in console.file.getvalue()) == terminal


def test_every_column_of_the_products(tiny):
    record = bench_products([tiny], (0.5,), repeats=1)
    record.rows[0]["sparseprop_ms"] = 12.34
    console = Console(file=io.StringIO(), width=200)
    for table in tables(record):
        console.print(table)
    shown = console.file.getvalue()
    for word in (
        "dense ms",
        "sparse ms",
        "packing",
        "limit",
        "GFLOP/s",
        "equivalent",
        "sparseprop ms",
        "12.3",
    ):
        assert word in shown
    assert f"{record.rows[0]['speed_up']:.2f}x" in shown and f"{record.summary[0]['speed_up']:.2f}x" in shown


def test_the_circumstances_in_a_line(tiny):
    record = bench_products([tiny], (0.5,), repeats=1)
    record.circumstances.update(git_commit="0123abc-dirty", threads=3)
    line = circumstances_line(record)
    assert "commit 0123abc (changed since)" in line and "3 threads" in line and "medians of 1" in line


def test_milliseconds():
    assert [_ms(0.01234), _ms(12.345), _ms(1234.5), _ms(None)] == ["0.0123", "12.3", "1234", ""]
    assert _ms(10.0, 0.05) == "10 ±5%"
