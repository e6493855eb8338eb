"""Time the products of one shape, sparse and dense, on random operands.

Both ways are timed with all that belongs to them: packing, compressing, changes of layout. A map comes and
goes in the engine's CHWN layout. A matrix (one position, a 1x1 kernel) comes and goes as rows, so that its
sparse products include the transposes and its dense ones do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from torchswat.engine.packed import ALL_DENSE, ALL_SPARSE, Choice, PackedConv2dProducts, Shape
from torchswat.engine.products import LinearProducts
from torchswat.engine.topk import Selection

Pair = tuple[float, float]
Best = Callable[[Callable[[], Tensor], Callable[[], Tensor]], Pair]

_NEVER = 1e9  # milliseconds, of what no kernel can do
_MOST_MULTIPLY_ADDS = 2**32  # of a raced product: beyond, fewer samples tell as much
_REPEATS = 3
_ENOUGH_SECONDS = 0.02  # of small products, which are repeated more often


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
    sizes = zip(shape.input[2:], shape.weight[2:], shape.stride, shape.padding, strict=True)
    height, width = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in sizes)
    return height, width


def multiply_adds(shape: Shape) -> int:
    """Return the multiply-adds of one dense product."""
    return shape.input[0] * math.prod(output_positions(shape)) * math.prod(shape.weight)


def race(
    shape: Shape, sparsity: float, repeats: int = _REPEATS, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time the three products of `shape` on random operands, sparse and dense in turns.

    Torch's random state, grad mode and autocast are left as they are. A large product is raced with fewer
    samples.

    Parameters
    ----------
    shape : Shape
        The sizes of the convolution, or of the fully connected layer as a 1x1 convolution on one position.
    sparsity : float
        The fraction of entries set to zero in the sparse operands, in [0, 1).
    repeats : int, default 3
        The least number of runs of each way; the best one counts.
    clock : callable, default time.perf_counter
        Returns seconds.

    Returns
    -------
    Timing

    Examples
    --------
    >>> timing = race(Shape((16, 8, 6, 6), (8, 8, 3, 3), (1, 1), (1, 1)), 0.8)
    >>> len(timing.forward)
    2
    """
    samples = shape.input[0]
    while samples > 16 and multiply_adds(shape) > _MOST_MULTIPLY_ADDS:
        samples //= 2
        shape = replace(shape, input=(samples, *shape.input[1:]))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        run = _race_matrix if is_matrix(shape) else _race_maps
        return run(shape, sparsity, partial(_best, repeats=repeats, clock=clock))


def _race_maps(shape: Shape, sparsity: float, best: Best) -> Timing:
    draw = torch.Generator().manual_seed(0)
    n, k, (p, q) = shape.input[0], shape.weight[0], output_positions(shape)
    x, gradient = (_random(draw, c, h, w, n).permute(3, 0, 1, 2) for c, h, w in (shape.input[1:], (k, p, q)))
    weight = _random(draw, *shape.weight)
    selection = _selection(sparsity)
    sparse, dense = (PackedConv2dProducts.of(shape, choice) for choice in (ALL_SPARSE, ALL_DENSE))

    def both(run: Callable[[PackedConv2dProducts], Tensor]) -> Pair:
        return best(lambda: run(sparse), lambda: run(dense))

    return Timing(
        both(lambda p: p.forward(x, p.forward_weight(weight, selection), None)),
        both(lambda p: p.grad_input(gradient, p.grad_input_weight(weight, selection), x)),
        both(lambda p: p.grad_weight(gradient, p.grad_weight_activation(x, selection), weight)),
    )


def _race_matrix(shape: Shape, sparsity: float, best: Best) -> Timing:
    draw = torch.Generator().manual_seed(0)
    (n, c, *_), k = shape.input, shape.weight[0]
    x, gradient, weight = _random(draw, n, c), _random(draw, n, k), _random(draw, k, c)
    maps_x, maps_gradient, maps_weight = (t[:, :, None, None] for t in (x, gradient, weight))
    selection = _selection(sparsity)
    sparse, dense = PackedConv2dProducts.of(shape, ALL_SPARSE), LinearProducts()

    def forward() -> Tensor:
        packed = sparse.forward_weight(maps_weight, selection)
        return _rows(sparse.forward(sparse.adapt(maps_x), packed, None))

    def grad_input() -> Tensor:
        packed = sparse.grad_input_weight(maps_weight, selection)
        return _rows(sparse.grad_input(maps_gradient, packed, maps_x))

    def grad_weight() -> Tensor:
        compressed = sparse.grad_weight_activation(maps_x, selection)
        return sparse.grad_weight(maps_gradient, compressed, maps_weight)

    return Timing(
        best(forward, lambda: dense.forward(x, dense.forward_weight(weight, selection), None)),
        best(grad_input, lambda: dense.grad_input(gradient, dense.grad_input_weight(weight, selection), x)),
        best(
            grad_weight,
            lambda: dense.grad_weight(gradient, dense.grad_weight_activation(x, selection), weight),
        ),
    )


def _rows(maps: Tensor) -> Tensor:
    return maps[:, :, 0, 0].clone(memory_format=torch.contiguous_format)


def _random(draw: torch.Generator, *sizes: int) -> Tensor:
    return torch.randn(sizes, generator=draw, dtype=torch.float32, device="cpu")


def _selection(sparsity: float) -> Selection:
    return Selection(
        limit=NormalDist().inv_cdf((1 + sparsity) / 2)
    )  # of the normal distribution's magnitudes


def _best(
    sparse: Callable[[], Tensor], dense: Callable[[], Tensor], repeats: int, clock: Callable[[], float]
) -> Pair:
    """Return the best milliseconds of each, run in turns; the first round, which allocates, is left out."""
    best = [math.inf] * 2
    started, rounds = clock(), 0
    while rounds <= repeats or (rounds < 10 * repeats and clock() - started < _ENOUGH_SECONDS):
        for i, run in enumerate((sparse, dense)):
            start = clock()
            try:
                run()
            except ValueError:  # there is no kernel for a map as wide as that
                return _NEVER, 0.0
            if rounds:
                best[i] = min(best[i], 1000 * (clock() - start))
        rounds += 1
    return best[0], best[1]
