"""What may follow a product in the same pass: an activation by the name of its operation, with up to two numbers.

The compiled kernels take the same list, by its order (`Activation` in engine/native/kernels.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from torchswat.runtime.graph import Node
from torchswat.runtime.operations.elementwise import erf, gelu, hard_sigmoid, sigmoid

Array = np.ndarray

NAMES = (
    "none",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Swish",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Gelu",
    "GeluTanh",
    "Exp",
    "Erf",
)
"""By their number in the kernels."""


class Activation(NamedTuple):
    """One of `NAMES`; `low` and `high`: the bounds of Clip, the slope of LeakyRelu, alpha and beta of HardSigmoid."""

    name: str = "none"
    low: float = 0.0
    high: float = 0.0

    @property
    def number(self) -> int:
        """Return how the kernels know it."""
        return NAMES.index(self.name)

    def __call__(self, x: Array) -> Array:
        """Return it of `x` in numpy."""
        return _BODIES[self.name](x, np.float32(self.low), np.float32(self.high))


def activation_of(node: Node, known: Callable[[str], Array | None]) -> Activation | None:
    """Return what `node` does to its first input, or None where it is no activation of the kernels.

    Parameters
    ----------
    node : Node
        Of a graph.
    known : callable
        Returns the entries of a name that depend on no image, or None.
    """
    kind, settings = node.operation, node.settings
    if kind == "Relu":
        return Activation("Clip", 0.0, math.inf)
    if kind == "Clip":
        bounds = [-math.inf, math.inf]
        for at, name in enumerate(node.inputs[1:]):
            value = known(name) if name else None
            if name and value is None:
                return None
            bounds[at] = bounds[at] if value is None else float(value.reshape(()))
        return Activation("Clip", *bounds) if bounds[0] <= bounds[1] else None
    if kind == "LeakyRelu":
        return Activation(kind, settings["alpha"])
    if kind == "HardSigmoid":
        return Activation(kind, settings["alpha"], settings["beta"])
    if kind == "Gelu":
        return Activation("GeluTanh" if settings["approximate"] == "tanh" else kind)
    return Activation(kind) if kind in NAMES else None


_BODIES: dict[str, Callable[[Array, np.float32, np.float32], Array]] = {
    "none": lambda x, low, high: x,
    "Clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "LeakyRelu": lambda x, low, high: np.where(x >= 0, x, x * low),
    "Sigmoid": lambda x, low, high: sigmoid(x),
    "Swish": lambda x, low, high: x * sigmoid(x),
    "HardSigmoid": lambda x, low, high: hard_sigmoid(x, float(low), float(high)),
    "HardSwish": lambda x, low, high: x * hard_sigmoid(x, 1 / 6, 0.5),
    "Tanh": lambda x, low, high: np.tanh(x),
    "Gelu": lambda x, low, high: gelu({"approximate": "none"}, x),
    "GeluTanh": lambda x, low, high: gelu({"approximate": "tanh"}, x),
    "Exp": lambda x, low, high: np.exp(x),
    "Erf": lambda x, low, high: erf(x),
}


def following(settings: Mapping[str, Any]) -> Activation:
    """Return what follows a fused product, by its settings."""
    if settings["relu"]:
        return Activation("Clip", 0.0, math.inf)
    return Activation(settings["after"], settings["low"], settings["high"])
