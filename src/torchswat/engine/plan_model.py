"""The cost model of the tuned plan: how long a product takes, sparse and dense, from its sizes alone.

A time is a sum of amounts, each times what one of it costs:

    sparse     kept multiply-adds, lists walked through, tiles packed, results written, weights scanned
    dense      multiply-adds, also with channels filled up to whole vectors, entries masked, layouts changed
    both       one call

Amounts are counted for one thread, in millions; costs are milliseconds for a million (for a call: one). The
costs stand in `COSTS` (`torchswat.engine.plan_costs`), for each instruction set a row for each kind of shape,
product and way. Counting is the same for all: vectors of sixteen samples are two of eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from torchswat.engine.loader import native
from torchswat.engine.plan_costs import COSTS
from torchswat.engine.shape import Choice, Shape
from torchswat.engine.timings import Timing, is_matrix, output_positions

PRODUCTS = ("forward", "grad_input", "grad_weight")
WAYS = ("sparse", "dense")

MARGIN = 0.95
"""Of the dense time: a sparse product must be expected to be faster than that."""

_LANES = 16  # samples (or filters) in a vector
_TILES = ((4, 4), (4, 7), (3, 7), (3, 8), (4, 6), (2, 7), (2, 8))  # as in native/conv_tiles.h
_SMALL_MAP = 64  # positions, as in native/slabs.h
_TINY_VECTORS = 4  # of samples, in a tile of a map of 2x2
_TRIMMED = (4, 8)  # maps of which the zeros around them are left out
_FLAT_TILE = 8  # vectors of a tile of a 1x1 kernel
_TILE_FLOATS = 11 * 1024  # of a block of channels
_SLAB_FLOATS = 10 * 1024  # of the output gradient that one list of the weight gradient runs over
_REACH = 2**16  # of an offset
_CACHE_FLOATS = 2**20  # of a map that is still in a cache when it is read
_LEARNT_ENTRIES = 2**15
_MILLION = 1e-6


def kind_of(shape: Shape) -> str:
    """Return which costs hold for `shape`.

    Examples
    --------
    >>> kind_of(Shape((16, 8, 6, 6), (8, 8, 3, 3), (1, 1), (1, 1)))
    '3x3'
    """
    kernel, strided = shape.weight[2:], shape.stride != (1, 1)
    if is_matrix(shape):
        return "matrix"
    if shape.is_pointwise:
        return "1x1 strided" if strided else "1x1"
    if kernel == (3, 3) and not shape.is_dilated:
        return "3x3 strided" if strided else "3x3"
    return "other"


def choice(shape: Shape, sparsity: float, threads: int | None = None) -> Choice:
    """Return which products of `shape` are expected to be faster sparse; in doubt they run dense."""
    timing = estimate(shape, sparsity, threads)
    pairs = timing.forward, timing.grad_input, timing.grad_weight
    return possible(shape, Choice(*(sparse < MARGIN * dense for sparse, dense in pairs)))


def possible(shape: Shape, chosen: Choice) -> Choice:
    """Return `chosen` without sparse products that there is no kernel for.

    There is no weight gradient for dilation. Offsets have 16 bits. Those of forward and grad_input reach over the
    tile of one channel, in positions; those of grad_weight over one row of the output gradient of a strided
    convolution, with all the filters of a block.
    """
    height, width = (8 * s + kernel for s, kernel in zip(shape.stride, shape.weight[2:], strict=True))
    if height * width >= _REACH:
        chosen = replace(chosen, forward=False, grad_input=False)
    if shape.is_dilated:
        return replace(chosen, grad_weight=False)
    if shape.stride == (1, 1):
        return chosen
    columns = shape.input[3] // shape.stride[1] + shape.weight[3]
    reached = columns * _filters_together(Sizes.of(shape)) < _REACH
    return chosen if reached else replace(chosen, grad_weight=False)


def estimate(shape: Shape, sparsity: float, threads: int | None = None) -> Timing:
    """Return the expected milliseconds of the three products of `shape`, sparse and dense.

    Parameters
    ----------
    shape : Shape
        The sizes of the convolution, or of the fully connected layer as a 1x1 convolution on one position.
    sparsity : float
        The fraction of entries set to zero in the sparse operands, in [0, 1).
    threads : int, optional
        Default: those of torch.

    Examples
    --------
    >>> timing = estimate(Shape((128, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1)), 0.8, threads=2)
    >>> all(sparse < dense for sparse, dense in (timing.forward, timing.grad_input, timing.grad_weight))
    True
    """
    threads = torch.get_num_threads() if threads is None else threads
    costs = costs_here(shape.narrow)
    return Timing(*(estimate_pair(costs, shape, product, sparsity, threads) for product in PRODUCTS))


def costs_here(narrow: bool = False) -> Mapping[tuple[str, str, str], tuple[float, ...]]:
    """Return the costs of the instruction set in use; where there are none of it, those of the nearest.

    Those of bfloat16 are of processors with its dot products; elsewhere those of float32 stand for them.
    """
    module = native()
    isa = module.isa() if module is not None else "plain"
    if narrow and "bf16" in isa and isa in COSTS:
        return COSTS[isa]
    return COSTS.get(isa.removesuffix("bf16").removesuffix("vnni")) or COSTS.get("avx2") or COSTS["avx512"]


def estimate_pair(
    costs: Mapping[tuple[str, str, str], tuple[float, ...]],
    shape: Shape,
    product: str,
    sparsity: float,
    threads: int,
) -> tuple[float, float]:
    """Return the expected milliseconds of one product by `costs`, sparse and dense."""
    kind, sizes = kind_of(shape), Sizes.of(shape)
    sparse, dense = (
        _cost(costs[kind, product, way], amounts(kind, sizes, product, way, density), threads)
        for way, density in zip(WAYS, densities(shape, sparsity), strict=True)
    )
    return sparse, dense


def densities(shape: Shape, sparsity: float) -> tuple[float, float]:
    """Return the share of multiply-adds that sparse products do, and of entries that the dense ones mask.

    Of bfloat16, pairs are multiplied together where either entry is kept.

    Examples
    --------
    >>> densities(Shape((16, 8, 6, 6), (8, 8, 3, 3), (1, 1), (1, 1), narrow=True), 0.5)
    (0.375, 0.5)
    """
    return (1 - sparsity**2) / 2 if shape.narrow else 1 - sparsity, 1 - sparsity


def _cost(costs: tuple[float, ...], amounts: tuple[float, ...], threads: int) -> float:
    shared = sum(cost * amount for cost, amount in zip(costs[1:], amounts[1:], strict=True))
    return costs[0] + shared / threads


@dataclass(frozen=True)
class Sizes:
    """The sizes of a convolution with samples n, channels c, filters k, kernel r x s, output p x q."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int  # positions of the input for one of the output
    window: int  # taps that one input position meets, at most 3 x 3 of which are done at once
    p: int
    q: int
    height: int  # of the kernel, with the gaps between its taps
    width: int

    @classmethod
    def of(cls, shape: Shape) -> Sizes:
        taps = [
            min(3, -(-kernel // stride))
            for kernel, stride in zip(shape.weight[2:], shape.stride, strict=True)
        ]
        k, _, r, s = shape.weight
        stride = shape.stride[0] * shape.stride[1]
        return cls(*shape.input, k, r, s, stride, taps[0] * taps[1], *output_positions(shape), *shape.extent)


def amounts(kind: str, z: Sizes, product: str, way: str, density: float) -> tuple[float, ...]:
    """Return what the costs of a product multiply; the first is one call."""
    if way == "dense":
        count = _dense_matrix if kind == "matrix" else _dense_maps
        counted = count(z, product, density)
    elif product == "grad_weight":
        counted = _sparse_weight_gradient(z, density)
    else:
        counted = _sparse_weights(kind, z, product == "forward", density)
    return (1.0, *(_MILLION * amount for amount in counted))


def _sparse_weights(kind: str, z: Sizes, forward: bool, density: float) -> tuple[float, ...]:
    """Count forward, or grad_input: there source and result change places."""
    weights = z.k * z.c * z.r * z.s
    source, result = (z.c, z.k) if forward else (z.k, z.c)
    inside = 1.0
    if kind in ("1x1", "matrix"):
        lanes = _up(z.n * z.h * z.w, _LANES)
        tiles, vectors = -(-lanes // (_FLAT_TILE * _LANES)), lanes // _LANES
        source_floats = result_floats = lanes
        reach = _FLAT_TILE
    elif kind == "3x3" and (z.h, z.w) == (z.p, z.q) == (2, 2):  # the whole map is a tile, times some vectors
        groups = -(-z.n // _LANES)
        tiles, vectors, inside = -(-groups // _TINY_VECTORS), 4 * groups, 16 / 36
        source_floats = result_floats = 4 * groups * _LANES
        reach = 4 * _TINY_VECTORS
    else:
        groups = -(-z.n // _LANES)
        if kind == "3x3" and z.h == z.w == z.p == z.q and z.h in _TRIMMED:
            inside = ((3 * z.h - 2) / (3 * z.h)) ** 2
        steps = (z.p, z.q) if forward or z.stride > 1 else (z.h, z.w)
        a_map, height, width = min(_tiling(*steps, *tile) for tile in _TILES)
        tiles, vectors = groups * a_map // (height * width), groups * a_map
        input_floats, output_floats = groups * _LANES * z.h * z.w, groups * _LANES * z.p * z.q
        source_floats, result_floats = (
            (input_floats, output_floats) if forward else (output_floats, input_floats)
        )
        reach = (height + z.height - 1) * (width + z.width - 1)
    blocks = -(-source * reach * _LANES // _TILE_FLOATS)
    return (
        density * weights * vectors * _LANES * inside,
        density * weights * tiles,
        source_floats * source,
        result_floats * result,
        result * tiles * blocks * (1 if forward else min(z.stride, z.r * z.s)),
        source * tiles * reach * _LANES,
        weights,
        _beyond_cache(source_floats * source) + _beyond_cache(result_floats * result),
    )


def _tiling(height: int, width: int, tile_height: int, tile_width: int) -> tuple[int, int, int]:
    """Return the positions that tiles of one size cover, those beyond the map included, and the tile."""
    return _up(height, tile_height) * _up(width, tile_width), tile_height, tile_width


def _sparse_weight_gradient(z: Sizes, density: float) -> tuple[float, ...]:
    cell = _filters_together(z)
    filters, taps = _up(z.k, cell), z.r * z.s
    entries = z.n * z.c * z.h * z.w
    met = entries / z.stride  # a position meets so many taps of a strided kernel
    samples = _up(z.n, _LANES)
    slabs = max(samples / 32, samples * z.h * z.w / z.stride * cell / _SLAB_FLOATS)
    return (
        density * met * filters * taps,
        density * met * filters / cell * max(1.0, taps / z.window),
        entries,
        samples * z.p * z.q * filters,
        slabs * z.c * filters * taps,
        slabs * z.c * filters / cell * min(z.stride, taps),
        density * entries,
        z.k * z.c * taps,
        samples * z.c * z.h * z.w,
        _beyond_cache(entries) + _beyond_cache(z.n * z.p * z.q * z.k),
    )


def _dense_matrix(z: Sizes, product: str, density: float) -> tuple[float, ...]:
    n, c, k = z.n, z.c, z.k
    padded = {
        "forward": _up(n, 8) * _up(k, 48) * c,
        "grad_input": _up(n, 8) * _up(c, 48) * k,
        "grad_weight": _up(k, 8) * _up(c, 48) * n,
    }
    beyond = _beyond_cache(n * c) + _beyond_cache(n * k) + _beyond_cache(c * k)
    return n * c * k, padded[product], c * k, n * c, n * k, beyond, _kept(z, product, density)


def _filters_together(z: Sizes) -> int:
    """Return the filters of a block of the weight gradient."""
    vectors = 4 if z.window == 1 else 2 if z.window <= 4 or z.h * z.w <= _SMALL_MAP else 1
    while vectors > 1 and z.k <= vectors // 2 * _LANES:
        vectors //= 2
    return vectors * _LANES


def _kept(z: Sizes, product: str, density: float) -> float:
    """Count the kept entries of the masked operand beyond what a branch predictor learns."""
    entries = z.n * z.c * z.h * z.w if product == "grad_weight" else z.k * z.c * z.r * z.s
    return density * max(0, entries - _LEARNT_ENTRIES)


def _dense_maps(z: Sizes, product: str, density: float) -> tuple[float, ...]:
    taps, positions = z.r * z.s, z.n * z.p * z.q
    return (
        z.c * z.k * taps * positions,
        _up(z.c, _LANES) * _up(z.k, _LANES) * taps * positions,
        max(z.c, z.k) * taps * positions,
        z.k * z.c * taps,
        z.n * z.c * z.h * z.w,
        positions * z.k,
        positions * z.c,
        _beyond_cache(z.n * z.c * z.h * z.w) + _beyond_cache(positions * z.k),
        _kept(z, product, density),
    )


def _beyond_cache(floats: int) -> int:
    return max(0, floats - _CACHE_FLOATS)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
