"""Ways of finding the k-th largest magnitude, side by side: ours, torch's and numpy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from torchswat.bench.race import Tick, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.engine import topk
from torchswat.engine.loader import info, native
from torchswat.selection import METHODS, check_sparsity, kept_count, kth_largest

SIZES = (8_388_608, 589_824)
"""Entries: of the input of ResNet-18's first stage at batch 128, and of a weight of its third stage."""

_SAMPLES = 65_536


def bench_selection(
    sizes: Sequence[int] = SIZES,
    sparsity: float = 0.8,
    repeats: int = 7,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time every way of finding the threshold that keeps the largest ``1 - sparsity`` of normal numbers.

    Parameters
    ----------
    sizes : sequence of int
        Entries of the tensors.
    sparsity : float, default 0.8
        In [0, 1).
    repeats : int, default 7
        Timed rounds; each runs every method once.
    seed : int, default 0
        Of the entries.
    tick : callable
        Called ``rounds(sizes, repeats)`` times.

    Returns
    -------
    Record
    """
    check_sparsity(sparsity)
    situation = circumstances(seed, repeats)
    rows = []
    for size in sizes:
        torch.manual_seed(seed)
        tensor = torch.randn(size)
        ways = _ways(tensor, kept_count(size, sparsity))
        kept = {name: float((tensor.abs() >= way()).float().mean()) for name, way in ways.items()}
        samples = race(ways, repeats, tick)
        rows += [_row(name, size, sparsity, kept[name], times) for name, times in samples.items()]
    remarks = [] if native() else [f"no native methods: {info()['reason']}"]
    return Record("selection", situation, rows, [], remarks)


def rounds(sizes: Sequence[int], repeats: int) -> int:
    """Return how often `bench_selection` calls its `tick`."""
    return len(sizes) * (repeats + 1)


def _ways(tensor: Tensor, k: int) -> dict[str, Callable[[], float]]:
    """Return every way as a function that finds the threshold of `tensor`."""
    rank = tensor.numel() - k  # from the smallest, counted from 0

    def found(value: Tensor | topk.Found | np.generic | float | None) -> float:
        return value.value if isinstance(value, topk.Found) else float(value)  # type: ignore[arg-type]

    ways: dict[str, Callable[[], float]] = {
        f"{method} (reference)": partial(lambda m: found(kth_largest(tensor, k, method=m)), method)
        for method in METHODS
    }
    kernels = native()
    if kernels:
        ways["search (native)"] = lambda: found(topk.kth_largest(tensor, k))
        ways["sample (native)"] = lambda: found(topk.sampled_threshold(tensor, k, _SAMPLES))
        threshold = found(topk.kth_largest(tensor, k))
        pointer, threads = tensor.data_ptr(), torch.get_num_threads()
        ways["warm-started search (native)"] = lambda: found(  # an iteration moves thresholds by about 1 %
            kernels.kth_largest_near(pointer, tensor.numel(), k, 1.01 * threshold, threads).value
        )
        ways["threshold used again (native)"] = lambda: found(topk.count_kept(tensor, threshold))
    ways["torch.topk"] = lambda: found(tensor.abs().topk(k, sorted=False).values.amin())
    ways["torch.kthvalue"] = lambda: found(tensor.abs().kthvalue(rank + 1).values)
    ways["numpy.partition"] = lambda: found(np.partition(np.abs(tensor.numpy()), rank)[rank])
    return ways


def _row(name: str, size: int, sparsity: float, kept: float, times: list[float]) -> Row:
    return {
        "method": name,
        "entries": size,
        "sparsity": sparsity,
        "ms": median(times),
        "spread": spread(times),
        "gigabytes_per_second": 4 * size / median(times) / 1e6,  # each entry read once
        "density": kept,
        "samples": {name: times},
    }
