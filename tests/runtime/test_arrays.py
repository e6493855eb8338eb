"""Networks on numpy arrays: the same answers as the torch module, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import torchswat
from torchswat.errors import InvalidValue, MissingData
from torchswat.runtime.arrays import load
from torchswat.runtime.graph import Graph, Input, node
from torchswat.runtime.package import About, Package


def test_answers_are_those_of_the_module(saved: Callable[..., Path]):
    path = saved()
    network, module = load(path), torchswat.load(path)
    for images in (1, 3, 17):
        x = torch.randn(images, 1, 8, 8)
        scores = network(x.numpy())
        assert isinstance(scores, np.ndarray)
        np.testing.assert_allclose(scores, module(x).numpy(), rtol=1e-4, atol=1e-5)
    assert load(path, threads=1).threads == 1 <= network.threads


def test_several_inputs_and_outputs(tmp_path: Path):
    inputs = Input("a", ("batch", 2), (1, 2)), Input("b", ("batch", 2), (1, 2), "int64")
    nodes = node("Relu", ["a"], "c"), node("Neg", ["b"], "d")
    (tmp_path / "two").write_bytes(Package(Graph(inputs, nodes, ("c", "d")), {}, About()).to_bytes())
    found = load(tmp_path / "two")(np.array([[-1, 2]], np.float32), np.array([[3, 4]]))
    assert [each.tolist() for each in found] == [[[0, 2]], [[-3, -4]]]


def test_what_is_refused(saved: Callable[..., Path], tmp_path: Path):
    network = load(saved())
    with pytest.raises(InvalidValue, match="the input is float64; this network takes float32"):
        network(np.zeros((1, 1, 8, 8)))
    with pytest.raises(InvalidValue, match=r"\(1, 3, 8, 8\); this network takes"):
        network(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InvalidValue, match="threads is 0"):
        load(saved(), threads=0)
    with pytest.raises(MissingData):
        load(tmp_path / "absent")
