"""The compiled session against plain torch, on networks of the old format that nobody would draw."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from torchswat.errors import InvalidData
from torchswat.runtime.infer import constant, infer
from torchswat.runtime.network import Network
from torchswat.runtime.package import About, Package
from torchswat.runtime.version1 import convert

from . import old_reference


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


def converted(values: Any, tensors: dict[str, np.ndarray]) -> tuple[Package, tuple[int, ...]]:
    """Return the network of today, and the shape of its result for an image."""
    graph, constants = convert(values, {name: tensor.shape for name, tensor in tensors.items()})
    both = {**tensors, **constants}
    found = infer(graph, {name: constant(tensor) for name, tensor in both.items()}, graph.examples)
    shape = found[graph.outputs[0]].shape[1:]
    if any(np.prod(value.shape) > 2**21 for value in found.values()) or not all(shape):
        raise InvalidData("too large for a test")
    return Package(graph, both, About()), shape


def draw_package(draw: Random) -> tuple[Package, list[dict[str, Any]]]:
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
    package: Package | None = None
    while len(nodes) < length:
        operation, name = draw.choice((*operations, "relu")), f"node{len(nodes)}"
        node = {"name": name, "operation": operation, "settings": settings_of(operation, draw)}
        node["inputs"] = [nodes[-1]["name"] if nodes else "input"]
        if 2 * node["settings"].get("padding", 0) > node["settings"].get("kernel", 99):
            continue  # torch refuses it
        own = {f"{name}.{part}": tensor for part, tensor in tensors_of(operation, shape[0], draw).items()}
        values: Any = {"input_shape": list(input_shape), "nodes": [*nodes, node]}
        try:
            package, shape = converted(values, {**tensors, **own})
        except InvalidData:
            continue
        nodes, tensors = values["nodes"], {**tensors, **own}
    assert package is not None
    return package, nodes


@pytest.mark.parametrize("seed", range(40))
def test_any_network_equals_plain_torch(seed: int):
    draw = Random(seed)
    package, nodes = draw_package(draw)
    network = Network(package)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in package.tensors.items()}
    for pictures in (1, draw.randint(2, 15), draw.randint(16, 40)):
        x = torch.randn(pictures, *package.graph.input_shape)
        expected = old_reference.run(nodes, tensors, x)
        largest = max(1e-6, float(expected.abs().max()))
        assert float((network(x) - expected).abs().max()) <= 1e-4 * largest
