"""Networks that are written as ONNX compute the same in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchswat.errors import InvalidValue
from torchswat.runtime.graph import BATCH, Graph, Input, node
from torchswat.runtime.package import About, Package
from torchswat.runtime.session import Sessions

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from torchswat.runtime.onnx_reader import _Reader  # noqa: E402
from torchswat.runtime.onnx_writer import to_onnx  # noqa: E402

from .test_operations import CASES, model_of, reference, same  # noqa: E402

Array = np.ndarray


def check(graph: Graph, tensors: dict[str, Array], feeds: dict[str, Array]) -> None:
    """Compare a session with what ONNX Runtime makes of the written model."""
    written = to_onnx(Package(graph, tensors, About()), [x.shape for x in feeds.values()])
    expected = reference(onnx.load_from_string(written), feeds)
    same(Sessions(graph, tensors).run(list(feeds.values()), 1), expected)


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=6)
@given(data=st.data())
def test_operations_come_back(name: str, data: st.DataObject):
    model, feeds = model_of(CASES[name](data.draw))
    check(*_Reader(model, {}).read(1), feeds)


def one(operation: str, arrays: list[Array], constants: int = 0, **values: Any) -> None:
    """Check a network of one operation; the last inputs are constants."""
    names = [f"x{at}" for at in range(len(arrays))]
    varying = dict(zip(names, arrays[: len(arrays) - constants], strict=False))
    inputs = tuple(Input(key, (BATCH, *x.shape[1:]), x.shape, x.dtype.name) for key, x in varying.items())
    graph = Graph(inputs, (node(operation, names, "y", **values),), ("y",), rows=False)
    check(graph, dict(zip(names[len(varying) :], arrays[len(varying) :], strict=True)), varying)


def test_operations_that_onnx_lacks():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 4, 6, 6)).astype(np.float32)
    for name in ("Swish", "Expm1"):
        one(name, [x])
    one("Log1p", [np.abs(x)])
    one("RMSNormalization", [x, draw.standard_normal(6).astype(np.float32)], 1, epsilon=1e-3)
    for sizes in ((1, 1), (3, 2)):
        one("AdaptiveAveragePool", [x], sizes=sizes)
        one("AdaptiveMaxPool", [x], sizes=sizes)
    one("Attention", [x, x, x], is_causal=1)
    one("Attention", [x, x, x, draw.standard_normal((2, 1, 6, 6)).astype(np.float32)], scale=0.7)
    one("Attention", [x, x, x, draw.random((2, 1, 6, 6)) < 0.7])


def test_what_cannot_be_written_is_named():
    with pytest.raises(InvalidValue, match=r"AdaptiveAveragePool 'y' makes \(5, 5\) of \(6, 6\)"):
        one("AdaptiveAveragePool", [np.zeros((2, 4, 6, 6), np.float32)], sizes=(5, 5))


def test_a_network_that_was_read_from_torch(small_package: Package):
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    written = onnx.load_from_string(to_onnx(small_package, [x.shape]))
    onnx.checker.check_model(written, full_check=True)
    name = small_package.graph.inputs[0].name
    same(Sessions(small_package.graph, small_package.tensors).run([x], 1), reference(written, {name: x}))
    with pytest.raises(InvalidValue, match="this network takes"):
        to_onnx(small_package, [(3, 2, 8, 8)])
