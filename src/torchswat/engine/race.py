"""Time the products of one shape, sparse and dense, on random operands.

Operands are float32, or bfloat16 but for the weight (`Shape.narrow`).

Both ways are timed with all that belongs to them: packing, compressing, changes of layout. A map comes and
goes in the engine's CHWN layout. A matrix (one position, a 1x1 kernel) comes and goes as rows, so that its
sparse products include the transposes and its dense ones do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from torchswat.engine import compiled_layer, layout, saved
from torchswat.engine.arguments import (
    FORWARD_WEIGHT,
    GRAD_INPUT_SPARSE,
    GRAD_INPUT_WEIGHT,
    GRAD_WEIGHT_ACTIVATION,
    GRAD_WEIGHT_SPARSE,
    kept_count,
)
from torchswat.engine.block_masks import Blocks, block_sums, mask_of_blocks
from torchswat.engine.loader import native
from torchswat.engine.ops import Geometry
from torchswat.engine.shape import Shape
from torchswat.engine.timings import Pair, Timing, is_matrix, multiply_adds, output_positions

Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]
"""A product on sparse operands, and on dense ones."""

_NEVER = 1e9  # milliseconds, of what no kernel can do
_MOST_MULTIPLY_ADDS = 2**32  # of a raced product: beyond, fewer samples tell as much
_REPEATS = 3
_ENOUGH_SECONDS = 0.02  # of small products, which are repeated more often


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
        samples = samples // 4 * 2  # an even number: bfloat16 is multiplied in pairs of samples
        shape = replace(shape, input=(samples, *shape.input[1:]))
    best = partial(_best, repeats=repeats, clock=clock)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return Timing(*(best(*ways) for ways in contestants(shape, sparsity)))


def threshold_of(sparsity: float) -> float:
    """Return the magnitude below which that share of normal numbers lies.

    Examples
    --------
    >>> round(threshold_of(0.5), 3)
    0.674
    """
    return NormalDist().inv_cdf((1 + sparsity) / 2)


def contestants(shape: Shape, sparsity: float, block: tuple[int, int] = (1, 1), seed: int = 0) -> list[Ways]:
    """Return forward, grad_input and grad_weight of `shape`, each sparse and dense, on random operands.

    They are the very steps that a layer's pass is made of, but for the selection, which both ways share. Weights
    are selected one by one, or in blocks of filters x input channels.
    """
    module = native()
    assert module is not None
    draw = torch.Generator().manual_seed(seed)
    matrix = is_matrix(shape)
    sizes = compiled_layer.sizes_of(
        module, shape.input, shape.weight, shape.stride, shape.padding, shape.dilation, 1
    )
    threshold = threshold_of(sparsity)
    chosen = compiled_layer.Chosen(threshold)
    slots = FORWARD_WEIGHT | GRAD_INPUT_WEIGHT | GRAD_WEIGHT_ACTIVATION
    a = Geometry(shape.stride, shape.padding, shape.dilation, 1, slots, not matrix)
    (n, c, *_), k, (p, q) = shape.input, shape.weight[0], output_positions(shape)
    if matrix:
        x, gradient, weight = _random(draw, n, c), _random(draw, n, k), _random(draw, k, c)
    else:
        x, gradient = (
            _random(draw, *size, n).permute(3, 0, 1, 2) for size in ((c, *shape.input[2:]), (k, p, q))
        )
        weight = _random(draw, *shape.weight)
    if shape.narrow:
        x, gradient = (tensor.to(torch.bfloat16) for tensor in (x, gradient))
    if block != (1, 1):
        blocks = Blocks(*block)
        sums = block_sums(weight, blocks)
        least = sums.flatten().topk(kept_count(sums.numel(), sparsity)).values[-1]
        chosen = compiled_layer.Chosen(mask=mask_of_blocks(sums >= least, weight, blocks))
    size, order = x.shape, layout.NCHW if matrix else layout.CHWN

    def in_chwn(tensor: Tensor) -> Tensor:
        return layout.copy_to_chwn(tensor[:, :, None, None], module) if matrix else tensor

    def backward(maps: Tensor, products: int) -> compiled_layer.Return:
        return compiled_layer.Return(module, gradient, maps, weight, products, sizes, size, order, a)

    def forward_dense() -> Tensor:
        used = compiled_layer.masked(module, weight, chosen)
        return compiled_layer.forward_dense(module, sizes, x, x, used, None, a)

    def sparse_gradient() -> Tensor:
        kept = saved.compress(module, in_chwn(x), None, threshold, -1)[0]
        this = backward(in_chwn(gradient), GRAD_WEIGHT_SPARSE | compiled_layer.CHWN_SAVED)
        return compiled_layer.grad_weight_of(this, None, kept, threshold, None)

    def dense_gradient() -> Tensor:
        if matrix:
            kept, products = saved.keep_flat(module, x, None, threshold, -1)[0], 0
        else:
            kept, products = saved.compress(module, x, None, threshold, -1)[0], compiled_layer.CHWN_SAVED
        return compiled_layer.grad_weight_of(backward(gradient, products), None, kept, threshold, None)

    return [
        (
            lambda: compiled_layer.forward_sparse(module, sizes, in_chwn(x), weight, chosen, None, matrix)[0],
            forward_dense,
        ),
        (
            lambda: compiled_layer.grad_input_of(backward(in_chwn(gradient), GRAD_INPUT_SPARSE), chosen),
            lambda: compiled_layer.grad_input_of(backward(gradient, 0), chosen),
        ),
        (sparse_gradient, dense_gradient),
    ]


def _random(draw: torch.Generator, *sizes: int) -> Tensor:
    return torch.randn(sizes, generator=draw, dtype=torch.float32, device="cpu")


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
