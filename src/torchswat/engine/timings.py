"""How long the products of a shape take, and what of the shape that hangs on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchswat.engine.shape import Choice, Shape

Pair = tuple[float, float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the three products, each sparse and dense."""

    forward: Pair
    grad_input: Pair
    grad_weight: Pair

    def choice(self) -> Choice:
        """Return which products are faster sparse."""
        pairs = self.forward, self.grad_input, self.grad_weight
        return Choice(*(sparse < dense for sparse, dense in pairs))


def is_matrix(shape: Shape) -> bool:
    """Return whether `shape` is that of a fully connected layer: one position and a 1x1 kernel."""
    return shape.input[2:] == (1, 1) and shape.weight[2:] == (1, 1) and shape.padding == (0, 0)


def output_positions(shape: Shape) -> tuple[int, int]:
    """Return height and width of the output."""
    before, after = shape.padding[:2], shape.padding[-2:]
    sizes = zip(shape.input[2:], shape.extent, shape.stride, before, after, strict=True)
    height, width = (
        (size + before + after - kernel) // stride + 1 for size, kernel, stride, before, after in sizes
    )
    return height, width


def multiply_adds(shape: Shape) -> int:
    """Return the multiply-adds of one dense product."""
    return shape.input[0] * math.prod(output_positions(shape)) * math.prod(shape.weight)
