"""Convolutions of 8-bit numbers with sparse weights, one after the other: how near they come to the processor's limit.

    python benchmarks/int8_products.py
    python benchmarks/int8_products.py --threads 1 --batch-size 16

Each line is a 3x3 convolution of as many filters as channels. Dense-equivalent operations are those of the
convolution without zeros; ``fours`` are the instructions per second that multiply four pairs in each of 16 lanes.
Speed-up is over the same convolution in float32 at the same sparsity.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from torchswat.engine.compiled import native
from torchswat.runtime import lists
from torchswat.runtime.fours import groups, to_fours, weight_fours
from torchswat.runtime.memory import address, chwn, empty

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, height and width
SPARSITIES = (0.8, 0.9)
ROWS_BELOW = 16


def pruned(channels: int, sparsity: float, together: int) -> np.ndarray:
    """Return a weight of int8 of which blocks of `together` input channels are kept at random."""
    rng = np.random.default_rng(0)
    kept = rng.random((channels, channels // together, 3, 3)) >= sparsity
    weight = rng.integers(1, 127, (channels, channels, 3, 3)) * rng.choice(
        (-1, 1), (channels, channels, 3, 3)
    )
    return np.where(np.repeat(kept, together, 1), weight, 0).astype(np.int8)


def fastest(run: Callable[[], object], seconds: float = 0.5) -> float:
    """Return the median time of a call, in seconds."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def in_bytes(weight: np.ndarray, side: int, n: int, threads: int) -> Callable[[], object]:
    """Return a call of the product of bytes."""
    module, channels = native(), len(weight)
    assert module is not None
    shape = module.ConvShape(n, groups(channels), side, side, channels, 3, 3, 1, 1, 1, 1, side, side)
    by_rows = n < ROWS_BELOW
    fours = weight_fours(weight)
    packed = (
        lists.for_rows(module, shape, fours)
        if by_rows
        else lists.fours_for_samples(module, shape, fours, threads)
    )
    x = to_fours(np.random.default_rng(1).integers(0, 255, (n, channels, side, side)).astype(np.uint8))
    start, factor = np.zeros(channels, np.int32), np.full(channels, 1e-4, np.float32)
    shift = np.zeros(channels, np.float32)
    end = module.QuantizedEnd(address(start), address(factor), address(shift), 0.0, 0, False)
    workspace = empty((module.rows_workspace if by_rows else module.conv_workspace)(shape, threads))
    y = empty(x.size, np.uint8)
    kernel = module.rows_fours if by_rows else module.conv_fours
    held = x, start, factor, shift, packed

    def run() -> None:
        kernel(
            shape,
            address(held[0]),
            *packed.addresses(),
            end,
            0,
            True,
            address(y),
            address(workspace),
            threads,
        )

    return run


def in_floats(weight: np.ndarray, side: int, n: int, threads: int) -> Callable[[], object]:
    """Return a call of the product of float32."""
    module, channels = native(), len(weight)
    assert module is not None
    shape = module.ConvShape(n, channels, side, side, channels, 3, 3, 1, 1, 1, 1, side, side)
    by_rows, floats = n < ROWS_BELOW, weight.astype(np.float32)
    packed = (
        lists.for_rows(module, shape, floats)
        if by_rows
        else lists.for_samples(module, shape, floats, (1, 1), threads)
    )
    maps = (n, channels, side, side)
    x, y = chwn(empty(int(np.prod(maps))), maps), chwn(empty(int(np.prod(maps))), maps)
    x[:] = np.random.default_rng(1).normal(size=maps)
    bias = np.zeros(channels, np.float32)
    workspace = empty((module.rows_workspace if by_rows else module.conv_workspace)(shape, threads))
    kernel = module.conv_rows if by_rows else module.conv_forward_fused

    def run() -> None:
        kernel(
            shape,
            address(x),
            *packed.addresses(),
            address(bias),
            0,
            True,
            address(y),
            address(workspace),
            threads,
        )

    return run


def main() -> None:
    """Time every shape and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    threads, n = arguments.threads, arguments.batch_size
    print("channels  map  sparsity  blocks       ms   dense-equivalent GOP/s   G fours/s   over float32")
    for channels, side in SHAPES:
        for sparsity in SPARSITIES:
            for together in (1, 4):
                weight = pruned(channels, sparsity, together)
                seconds = fastest(in_bytes(weight, side, n, threads))
                floats = fastest(in_floats(weight, side, n, threads))
                dense = 2.0 * n * side * side * weight.size
                fours = np.count_nonzero(weight_fours(weight)) * n * side * side / 16
                print(
                    f"{channels:8}  {side:3}  {sparsity:8}  {'1x4' if together == 4 else 'none':>6}  "
                    f"{1000 * seconds:7.3f}   {dense / seconds / 1e9:22.0f}   {fours / seconds / 1e9:9.2f}   "
                    f"{floats / seconds:12.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
