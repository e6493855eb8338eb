"""The compiled session against plain torch, on networks that nobody would draw."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from torchswat.errors import InvalidData
from torchswat.runtime import plain
from torchswat.runtime.graph import Graph
from torchswat.runtime.network import Network
from torchswat.runtime.package import About, Package


def settings_of(operation: str, draw: Random) -> dict[str, int]:
    """Return settings that are allowed, sensible or not."""
    if operation == "conv2d":
        steps = {f"stride_{side}": draw.choice([1, 2, 3, 9]) for side in "hw"}
        edges = {f"padding_{side}": draw.choice([0, 1, 3, 11]) for side in "hw"}
        return {**steps, **edges, "relu": draw.randint(0, 1)}
    if operation in ("max_pool", "average_pool"):
        ceil = {"ceil": draw.randint(0, 1)} if operation == "max_pool" else {}
        return {
            "kernel": draw.randint(1, 9),
            "stride": draw.randint(1, 9),
            "padding": draw.randint(0, 4),
            **ceil,
        }
    return {
        "adaptive_average_pool": {"size": draw.randint(1, 9)},
        "subsample": {"stride": draw.randint(1, 5), "new_channels": draw.randint(0, 9)},
        "affine": {"relu": draw.randint(0, 1)},
        "relu": {},
    }[operation]


def tensors_of(operation: str, channels: int, draw: Random) -> dict[str, np.ndarray]:
    """Return weights for so many channels, of any density."""
    numbers = np.random.default_rng(draw.getrandbits(32))

    def normal(*shape: int) -> np.ndarray:
        return numbers.standard_normal(shape).astype(np.float32)

    if operation == "affine":
        return {"scale": normal(channels), "shift": normal(channels)}
    if operation != "conv2d":
        return {}
    filters = draw.choice([1, 3, 8, 33])
    shape = filters, channels, draw.randint(1, 7), draw.randint(1, 7)
    kept = numbers.random(shape) < draw.choice([0, 0.1, 0.5, 1])
    return {"weight": normal(*shape) * kept, "bias": normal(filters)}


def draw_package(draw: Random) -> Package:
    """Return a chain of operations on maps; draws again where one does not fit the one before."""
    shape = (draw.choice([1, 2, 3, 5, 16, 17]), draw.randint(1, 20), draw.randint(1, 20))
    input_shape, length, nodes, tensors = shape, draw.randint(1, 4), [], {}
    operations = (
        "conv2d",
        "conv2d",
        "max_pool",
        "average_pool",
        "adaptive_average_pool",
        "subsample",
        "affine",
    )
    while len(nodes) < length:
        operation, name = draw.choice((*operations, "relu")), f"node{len(nodes)}"
        node = {"name": name, "operation": operation, "settings": settings_of(operation, draw)}
        node["inputs"] = [nodes[-1]["name"] if nodes else "input"]
        own = {f"{name}.{part}": tensor for part, tensor in tensors_of(operation, shape[0], draw).items()}
        values: Any = {"input_shape": list(input_shape), "nodes": [*nodes, node]}
        try:
            graph = Graph.from_json(values)
            shape = graph.shapes({key: tensor.shape for key, tensor in {**tensors, **own}.items()})[name]
        except InvalidData:
            continue
        nodes, tensors = values["nodes"], {**tensors, **own}
    return Package(Graph.from_json({"input_shape": list(input_shape), "nodes": nodes}), tensors, About())


@pytest.mark.parametrize("seed", range(40))
def test_any_network_equals_plain_torch(seed: int):
    draw = Random(seed)
    package = draw_package(draw)
    network = Network(package)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in package.tensors.items()}
    for pictures in (1, draw.randint(2, 15), draw.randint(16, 40)):
        x = torch.randn(pictures, *package.graph.input_shape)
        expected = plain.run(package.graph, tensors, x)
        largest = max(1e-6, float(expected.abs().max()))
        assert float((network(x) - expected).abs().max()) <= 1e-4 * largest
