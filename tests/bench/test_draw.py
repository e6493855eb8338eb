"""Drawings: one panel a product or network, the limit in each."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchswat.bench.draw import draw
from torchswat.bench.record import Record, circumstances


def record(benchmark: str) -> Record:
    rows = [
        {
            **{"product": product, "shape": "3x3-64", "network": product, "how": "sample:1"},
            **{"sparsity": sparsity, "speed_up": 0.8 / (1 - sparsity), "limit": 1 / (1 - sparsity)},
        }
        for product in ("forward", "grad_input")
        for sparsity in (0.5, 0.9)
    ]
    return Record(benchmark, circumstances(seed=0, repeats=1), rows, [], [])


@pytest.mark.parametrize("benchmark", ["products", "step"])
def test_a_drawing_that_scales_and_a_picture(benchmark, tmp_path):
    svg, png = draw(record(benchmark), tmp_path / "result.json")
    assert (svg.name, png.name) == ("result.svg", "result.png")
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.png", "result.svg"]


def test_nothing_to_draw(tmp_path):
    assert draw(record("selection"), Path(tmp_path / "result.json")) == []
    assert draw(Record("step", {}, [{"network": "a", "how": "nchw"}], [], []), tmp_path / "result.json") == []
    assert list(tmp_path.iterdir()) == []
