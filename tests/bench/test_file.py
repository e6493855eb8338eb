"""``torchswat benchmark``: rows, layers and their work, what is left out, and how it ends."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import torchswat
from torchswat import cli
from torchswat.bench import file as bench
from torchswat.bench.draw import draw
from torchswat.bench.file import batches, bench_file, work
from torchswat.bench.show import tables
from torchswat.engine.compiled import native
from torchswat.errors import InvalidValue, UnknownName
from torchswat.runtime.graph import Graph, Input, node
from torchswat.runtime.package import About, Package
from torchswat.runtime.session import Session, Sessions


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small network, sparse at 0.8."""
    model = torchswat.sparsify_(torchswat.models.create("resnet-digits", width=8), sparsity=0.8).eval()
    torchswat.save(torchswat.prune_(model), tmp_path / "small.safetensors", input_shape=(1, 8, 8))
    return tmp_path / "small.safetensors"


@pytest.fixture(autouse=True)
def measured_before(monkeypatch):
    """What the machine can do is not measured again for every test."""
    monkeypatch.setattr(bench, "peak_bandwidth", lambda: {2**19: 100.0, 2**28: 10.0})
    monkeypatch.setattr(bench, "peak_gflops", lambda: {"registers": 100.0, "first_level_cache": 50.0})


def test_rows_layers_table_and_drawing(saved, tmp_path):
    pytest.importorskip("onnxruntime")
    ticks = []
    record = bench_file(saved, (1, 3), 2, ["onnxruntime"], tick=lambda: ticks.append(1))
    assert [(row["how"], row["batch_size"]) for row in record.rows] == [
        *(("torchswat", 1), ("onnxruntime", 1), ("torchswat", 3), ("onnxruntime", 3))
    ]
    assert len(ticks) == 6 and record.remarks == []
    for ours, theirs in (record.rows[:2], record.rows[2:]):
        assert ours["speed_up"] == theirs["ms"] / ours["ms"] and theirs["gap"] < 1e-4
        assert len(ours["samples"]["torchswat"]) == 2 and ours["ms"] > 0
        assert {row["operation"] for row in ours["layers"]} >= {"Conv", "Linear"}
        assert all(
            row["ms"] > 0 and row["bound"] in ("operations", "bytes", "overhead") for row in ours["layers"]
        )
    assert [table.row_count for table in tables(record)] == [4, *[len(record.rows[0]["layers"])] * 2]
    svg, png = draw(record, tmp_path / "result.json")
    assert b"<svg" in svg.read_bytes() and png.read_bytes().startswith(b"\x89PNG")


def of(*nodes, tensors=None, **shapes) -> tuple[Session, Graph]:
    """A session of a small graph, in numpy or kernels, and the graph."""
    inputs = tuple(Input(name, ("batch", *shape[1:]), shape) for name, shape in shapes.items())
    network = Sessions(Graph(inputs, nodes, (nodes[-1].name,)), tensors or {})
    return Session(network, dict(shapes), 1, native()), network.fused


def test_operations_of_a_convolution_are_those_of_kept_weights():
    weight = np.zeros((4, 3, 3, 3), np.float32)
    weight.reshape(-1)[:10] = 1
    session, graph = of(
        node("Conv", ["x", "w"], "y", pads=(1, 1, 1, 1)), tensors={"w": weight}, x=(2, 3, 5, 5)
    )
    operations, moved = work(session, graph.nodes[0])
    activations = 4 * (2 * 3 * 25 + 2 * 4 * 25 + 4)  # with the bias
    if session.fixed:
        assert (operations, moved) == (2 * 10 * 2 * 25, activations + 60)
    else:
        assert (operations, moved) == (2 * weight.size * 2 * 25, activations + weight.nbytes)


def test_operations_of_products_of_two_inputs():
    session, graph = of(node("MatMul", ["a", "b"], "y"), a=(2, 3, 4), b=(2, 4, 5))
    assert work(session, graph.nodes[0]) == (2 * 2 * 3 * 4 * 5, 4 * (24 + 40 + 30))
    session, graph = of(node("Attention", ["q", "k", "v"], "y"), q=(2, 3, 4), k=(2, 6, 4), v=(2, 6, 5))
    assert work(session, graph.nodes[0])[0] == 2 * 2 * 3 * 6 * (4 + 5)
    session, graph = of(node("Flatten", ["x"], "y"), x=(2, 3, 4))
    assert work(session, graph.nodes[0]) == (0, 0)


def test_layers_of_images_side_by_side_are_those_of_one_run(saved):
    """Two threads take an image each: their times come together as they did."""
    package = Package.read(saved)
    network, facts = (
        Sessions(package.graph, package.tensors),
        {"peak_gflops": None, "peak_bandwidth": {1: 1.0}},
    )
    x = [np.zeros((5, 1, 8, 8), np.float32)]
    side_by_side, alone = (bench._layers(network, x, threads, 1, facts) for threads in (2, 1))
    assert {r["layer"]: r["operations"] for r in side_by_side} == {r["layer"]: r["operations"] for r in alone}


def test_streams(saved):
    record = bench_file(saved, (2,), 2, [], streams=3)
    (row,) = record.rows
    assert row["per_second"] == pytest.approx(1000 * 2 * 3 / row["ms"])
    started, gate = [], threading.Barrier(3)
    calls = [lambda at=at: [started.append(at), gate.wait(10)] for at in range(3)]
    bench._at_once(calls)()  # ends only where the three run at once
    assert sorted(started) == [0, 1, 2]


def test_batch_sizes():
    free, fixed = (Graph((Input("x", (size, 4), (3, 4)),), (), ("x",)) for size in ("batch", 3))
    assert batches(free) == [1, 16] and batches(free, (2, 2, 8)) == [2, 8] and batches(fixed) == [3]
    with pytest.raises(InvalidValue, match="the batch size is 4; this network takes 3 alone"):
        batches(fixed, (4,))


def test_who_is_left_out(saved, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)

    def refuse(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(bench._MAKERS, "onnxruntime", refuse)
    pytest.importorskip("onnx")
    record = bench_file(saved, (1, 2), 1)
    assert [row["speed_up"] for row in record.rows] == [None, None]
    assert record.remarks == [
        "onnxruntime is left out: no such operator",
        "openvino is left out: openvino is not installed",
    ]
    with pytest.raises(UnknownName, match="runtime"):
        bench_file(saved, peers=["deepsparse"])


def test_inputs_that_are_no_images(tmp_path):
    tensors = {"table": np.eye(4, dtype=np.float32)}
    inputs = Input("i", ("batch", 3), (1, 3), "int64"), Input("x", ("batch", 3, 4), (1, 3, 4))
    nodes = node("Gather", ["table", "i"], "rows"), node("Add", ["rows", "x"], "y")
    (tmp_path / "table").write_bytes(Package(Graph(inputs, nodes, ("y",)), tensors, About()).to_bytes())
    record = bench_file(tmp_path / "table", (2,), 1, [])
    assert [row["layer"] for row in record.rows[0]["layers"]] == ["rows", "y"]


def test_the_command(saved, tmp_path, monkeypatch, capsys):
    path = tmp_path / "result.json"
    before = torch.get_num_threads()

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchswat", "benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    code, output, errors = call(saved, "-b", 2, "--repeats", 1, "--threads", before, "--json", "-o", path)
    assert code == 0 and json.loads(output) == json.loads(path.read_text()), errors
    assert json.loads(output)["benchmark"] == "file" and path.with_suffix(".png").exists()
    code, output, errors = call(saved, "-b", 2, "--repeats", 1, "-o", path)
    assert code == 0 and "Layers, batch size 2" in output, errors
    other = tmp_path / "other.json"
    other.write_text("{}")
    code, _, errors = call(saved, "-o", other)
    assert code == 2 and "which is no result of `benchmark`" in errors
