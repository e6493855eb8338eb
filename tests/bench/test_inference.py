"""The benchmark of inference: who is there is timed, who is not is named, the fastest peer counts."""

from __future__ import annotations

import pytest

from torchswat.bench import inference
from torchswat.bench.inference import bench_inference, rounds
from torchswat.bench.show import tables
from torchswat.errors import InvalidValue, UnknownName


def test_every_contestant_has_a_row(tiny):
    ticks: list[None] = []
    record = bench_inference([tiny], (0.5, 0.8), 2, ["pytorch"], tick=lambda: ticks.append(None))
    assert len(ticks) == rounds([tiny], 2)
    assert [(row["how"], row["sparsity"]) for row in record.rows] == [
        ("pytorch", None),
        ("torchswat", 0.5),
        ("torchswat", 0.8),
    ]
    for row in record.rows:
        assert row["speed_up"] == pytest.approx(record.rows[0]["ms"] / row["ms"])
        assert row["images_per_second"] == pytest.approx(4000 / row["ms"])
    assert tables(record)[0].row_count == 3


def test_a_peer_that_is_not_there_is_named(tiny, monkeypatch):
    monkeypatch.setitem(inference._PACKAGES, "openvino", ("openvino_of_old",))
    record = bench_inference([tiny], (0.8,), 1, ["openvino"])
    assert [row["speed_up"] for row in record.rows] == [None]
    assert record.remarks == ["openvino is left out: openvino_of_old is not installed"]


def test_onnxruntime(tiny):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    record = bench_inference([tiny], (0.8,), 1, ["onnxruntime"])
    assert record.rows[0]["how"] == "onnxruntime" and record.rows[0]["ms"] > 0


def test_what_is_refused(tiny):
    with pytest.raises(UnknownName, match="case to time"):
        bench_inference(["resnet-64"])
    with pytest.raises(UnknownName, match="peer"):
        bench_inference([tiny], peers=["deepsparse"])
    with pytest.raises(InvalidValue, match="1"):
        bench_inference([tiny], (1.0,))
