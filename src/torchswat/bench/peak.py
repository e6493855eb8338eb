"""The two rates that bound the products on this machine; see ``engine/native/peak.cpp``.

A dense product serves many filters with each vector that it loads, so it may come near the rate of registers.
A sparse one loads a vector for every multiply-add, because the next entry is somewhere else.
"""

from __future__ import annotations

import time

import torch

from torchswat.engine.loader import native

_ROUNDS = 400_000
_REPEATS = 9
_TILE = 512 * 16  # floats


def peak_gflops() -> dict[str, float] | None:
    """Return GFLOP/s with operands in registers and in the first-level cache; None without the engine.

    Examples
    --------
    >>> peak_gflops() is None or sorted(peak_gflops())
    ['first_level_cache', 'registers']
    """
    module = native()
    if module is None:
        return None
    threads = torch.get_num_threads()
    memory = torch.full((_TILE + 16,), 0.5)
    tile = memory[-memory.data_ptr() // 4 % 16 :]  # aligned to 64 bytes
    sink = torch.empty(threads * 16)
    contestants = {
        "registers": lambda: module.peak_registers(_ROUNDS, sink.data_ptr(), threads),
        "first_level_cache": lambda: module.peak_loads(tile.data_ptr(), _ROUNDS, sink.data_ptr(), threads),
    }
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(_REPEATS):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    operations = module.peak_operations() * _ROUNDS * threads
    return {name: operations / seconds / 1e9 for name, seconds in best.items()}


SIZES = 2**19, 2**22, 2**25, 2**28
"""Bytes read and written over and over, in all: of caches, and of memory."""


def peak_bandwidth() -> dict[int, float]:
    """Return the GB/s of a copy, read and written, for each of `SIZES`.

    Examples
    --------
    >>> sorted(peak_bandwidth()) == sorted(SIZES)
    True
    """
    found = {}
    for size in SIZES:
        source = torch.zeros(size // 8)
        target = torch.empty_like(source)
        best = float("inf")
        for _ in range(_REPEATS * max(1, 2**24 // size)):
            start = time.perf_counter()
            target.copy_(source)
            best = min(best, time.perf_counter() - start)
        found[size] = size / best / 1e9
    return found
