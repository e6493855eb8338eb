"""The roofline: its limits follow from sizes and peaks, and every layer of a network is in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat import models
from torchswat.bench.draw import draw
from torchswat.bench.roofline import bench_roofline, lower_bound, rounds, shapes_of
from torchswat.bench.show import tables
from torchswat.bench.step import NETWORKS
from torchswat.engine.loader import engine, native
from torchswat.engine.shape import Shape
from torchswat.errors import InvalidValue, MissingDependency, UnknownName

sides = st.integers(1, 9)
shapes = st.builds(
    lambda n, c, h, w, k, r: Shape((n, c, h, w), (k, c, r, r), (1, 1), (r // 2, r // 2)),
    *(sides, sides, sides, sides, sides),
    st.sampled_from([1, 3, 5]),
)


@given(shapes, st.booleans(), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_bound_counts_every_operand(shape, needed, sparsity):
    operations, moved = lower_bound([(shape, needed)], sparsity, gflops=2.0, gbs=4.0)
    n, c, h, w = shape.input
    k, _, r, _ = shape.weight  # maps keep their size
    products = 3 if needed else 2
    assert operations == pytest.approx(products * 2 * n * c * h * w * k * r * r * (1 - sparsity) / 2e6)
    entries = (2 if needed else 1) * n * c * h * w + 2 * n * k * h * w + 4 * k * c * r * r
    assert moved == pytest.approx(4 * entries / 4e6)
    twice = lower_bound([(shape, needed)] * 2, sparsity, gflops=2.0, gbs=4.0)
    assert twice == pytest.approx((2 * operations, 2 * moved))


def test_shapes_are_those_of_the_network_at_its_batch_size():
    layers = shapes_of("resnet18")
    assert len(layers) == 20 and {shape.input[0] for shape, _ in layers} == {NETWORKS["resnet18"].batch_size}
    assert [needed for _, needed in layers] == [False] + [True] * 19
    model = models.create("resnet18", form=NETWORKS["resnet18"].form)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(math.prod(shape.weight) for shape, _ in layers) == sum(c.weight.numel() for c in convolutions)


@pytest.mark.skipif(native() is None, reason="the native engine is not built here")
def test_every_product_of_every_layer_is_there(tmp_path):
    ticks: list[None] = []
    record = bench_roofline(["resnet20"], 0.5, repeats=1, tick=lambda: ticks.append(None))
    assert len(ticks) == rounds(["resnet20"], 1)
    layers = shapes_of("resnet20")
    assert sum(row["layers"] for row in record.rows) == 3 * len(layers) - 1  # images have no gradient
    for row in record.rows:
        assert row["bound"] == ("operations" if row["operations_ms"] >= row["bytes_ms"] else "bytes")
        assert row["reached"] == pytest.approx(max(row["operations_ms"], row["bytes_ms"]) / row["ms"])
    (step,) = record.summary
    assert step["over_bound"] == pytest.approx(step["step_ms"] / (step["operations_ms"] + step["bytes_ms"]))
    products, steps = tables(record)
    assert products.row_count == len(record.rows) and steps.row_count == 1
    drawings = draw(record, tmp_path / "roofline.json")
    assert [path.suffix for path in drawings] == [".svg", ".png"] and all(p.stat().st_size for p in drawings)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UnknownName, match="resnet18"):
        bench_roofline(["resnet-18"])
    with pytest.raises(InvalidValue, match="sparsity"):
        bench_roofline(sparsity=1.0)
    with engine("reference"), pytest.raises(MissingDependency, match="compiled engine"):
        bench_roofline(["resnet20"], repeats=1)
