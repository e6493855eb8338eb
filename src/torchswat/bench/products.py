"""The three products of single convolutions, sparse against dense.

Operands lie where each side wants them: the dense side runs in NCHW and in channels_last and the faster one
counts; the sparse side gets activations in the CHWN layout, as sparse layers hand them to each other. What a
sparse product needs beyond that is in its time: packing the weight, or compressing the activation. Selecting
is not; `torchswat.bench.step` has every cost. Where the processor multiplies bfloat16, the same products in
bfloat16 are timed against dense ones in bfloat16, with weights selected one by one and in blocks of 2x2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import geometric_mean
from types import ModuleType

import torch
from torch import Tensor

from torchswat.bench import peer
from torchswat.bench.peak import peak_gflops
from torchswat.bench.race import Tick, faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.engine import dense, info, layout, saved
from torchswat.engine.compiled_layer import sizes_of
from torchswat.engine.loader import native
from torchswat.engine.race import contestants as race_of
from torchswat.engine.race import threshold_of
from torchswat.engine.shape import Shape
from torchswat.engine.timings import output_positions
from torchswat.errors import MissingDependency, UnknownName
from torchswat.selection import check_sparsity

PRODUCTS = ("forward", "grad_input", "grad_weight")
SPARSITIES = (0.5, 0.7, 0.8, 0.9)


def _shape(batch: int, channels: int, filters: int, side: int, kernel: int, stride: int = 1) -> Shape:
    padding = kernel // 2
    return Shape(
        (batch, channels, side, side),
        (filters, channels, kernel, kernel),
        (stride, stride),
        (padding, padding),
    )


SHAPES: dict[str, Shape] = {
    "3x3-64": _shape(128, 64, 64, 32, 3),
    "3x3-128": _shape(128, 128, 128, 16, 3),
    "3x3-256": _shape(128, 256, 256, 8, 3),
    "3x3-512": _shape(128, 512, 512, 4, 3),
    "3x3-stride2": _shape(128, 64, 128, 32, 3, stride=2),
    "1x1-1024-256": _shape(16, 1024, 256, 14, 1),
    "1x1-256-64": _shape(16, 256, 64, 56, 1),
}
"""Convolutions by name: of ResNet-18 for small images (batch 128) and ResNet-50 for large ones (16)."""

STANDARD = ("3x3-64", "3x3-128", "3x3-256", "3x3-512")
"""The four of stride 1 of ResNet-18 for small images; `TARGETS` are for their twelve products."""

DENSE_BFLOAT16, BFLOAT16, BLOCKS = "dense bfloat16", "bfloat16", "bfloat16 in blocks of 2x2"
TARGETS = {0.5: 1.4, 0.7: 2.15, 0.8: 2.9, 0.9: 4.7}
"""Geometric mean of the speed-ups that are asked for, by sparsity, with AVX-512."""


def bench_products(
    shapes: Sequence[str] = STANDARD,
    sparsities: Sequence[float] = SPARSITIES,
    repeats: int = 15,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time the products of `shapes` at `sparsities` against their dense counterparts.

    Parameters
    ----------
    shapes : sequence of str
        Names in `SHAPES`.
    sparsities : sequence of float
        In [0, 1).
    repeats : int, default 15
        Timed rounds; each runs every contestant once.
    seed : int, default 0
        Of the operands, which are normal random numbers; a threshold on magnitudes selects.
    tick : callable
        Called ``rounds(shapes, repeats)`` times.

    Returns
    -------
    Record

    Raises
    ------
    UnknownName, InvalidValue
        For a shape that is not in the list, or a sparsity outside [0, 1).
    MissingDependency
        Without the compiled engine, which alone has sparse products.
    """
    check_shapes(shapes)
    if native() is None:
        raise MissingDependency(
            f"sparse products need the compiled engine: {info()['reason']}. `torchswat doctor` says more."
        )
    for sparsity in sparsities:
        check_sparsity(sparsity)
    situation = circumstances(seed, repeats)
    rows = []
    for name in shapes:
        for product in PRODUCTS:
            torch.manual_seed(seed)
            rows += _compare(name, SHAPES[name], product, sparsities, repeats, seed, tick)
    targets = TARGETS if set(shapes) == set(STANDARD) and str(info()["isa"]).startswith("avx512") else {}
    summary = [
        {
            "sparsity": sparsity,
            "products": sum(row["sparsity"] == sparsity for row in rows),
            "speed_up": geometric_mean(row["speed_up"] for row in rows if row["sparsity"] == sparsity),
            "target": targets.get(sparsity),
            "limit": 1 / (1 - sparsity),
        }
        | _narrow_means([row for row in rows if row["sparsity"] == sparsity])
        for sparsity in sparsities
    ]
    remarks = [reason for reason in (bfloat16_absent(), peer.absent()) if reason]
    situation["peak_gflops"] = peak = peak_gflops()
    if peak is not None:
        remarks.append(
            f"peak multiply-add rate here: {peak['registers']:.0f} GFLOP/s from registers, "
            f"{peak['first_level_cache']:.0f} with an operand from the first-level cache, as in sparse ones"
        )
    return Record("products", situation, rows, summary, remarks)


def _narrow_means(rows: list[Row]) -> Row:
    """Return the geometric means over dense bfloat16, where that was measured."""
    keys = ("bfloat16_speed_up", "blocks_speed_up")
    return {key: geometric_mean(row[key] for row in rows) for key in keys if all(key in row for row in rows)}


def check_shapes(names: Sequence[str]) -> None:
    """Raise `UnknownName` for a name that is not in `SHAPES`."""
    for name in names:
        if name not in SHAPES:
            raise UnknownName.of("shape", name, SHAPES)


def rounds(shapes: Sequence[str], repeats: int) -> int:
    """Return how often `bench_products` calls its `tick`."""
    return len(shapes) * len(PRODUCTS) * (repeats + 1)


def bfloat16_absent() -> str | None:
    """Return why no dense bfloat16 is measured, or None where it is."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "no bfloat16: this processor (or the instruction set asked for) multiplies none by itself"


# ---- one product of one shape ------------------------------------------------------------------------------


@torch.no_grad()
def _compare(
    name: str, shape: Shape, product: str, sparsities: Sequence[float], repeats: int, seed: int, tick: Tick
) -> list[Row]:
    """Race one product of one shape: dense in every layout, sparse at every sparsity."""
    place, module = PRODUCTS.index(product), native()
    assert module is not None
    output = (shape.input[0], shape.weight[0], *output_positions(shape))
    x, weight, gradient = map(torch.randn, (shape.input, shape.weight, output))
    contestants = _dense_contestants(shape, product, x, weight, gradient)
    for sparsity in sparsities:
        threshold = threshold_of(sparsity)
        contestants[f"packing {sparsity}"] = _packing(module, shape, product, x, weight, threshold)
        contestants[f"sparse {sparsity}"] = race_of(shape, sparsity, seed=seed)[place][0]
        if DENSE_BFLOAT16 in contestants:
            for name_of, block in ((BFLOAT16, (1, 1)), (BLOCKS, (2, 2))):
                ways = race_of(replace(shape, narrow=True), sparsity, block, seed)
                contestants[f"{name_of} {sparsity}"] = ways[place][0]
        if product == "forward":
            kept = torch.where(weight.abs() >= threshold, weight, 0)
            contestants.update(peer.contestants(shape, x, kept, sparsity))
    samples = race(contestants, repeats, tick)
    operations = 2 * math.prod(output) * math.prod(shape.weight[1:])
    return [
        {"shape": name, "sizes": str(shape), "product": product, "sparsity": sparsity}
        | _figures(samples, sparsity, operations)
        for sparsity in sparsities
    ]


def _packing(
    module: ModuleType, shape: Shape, product: str, x: Tensor, weight: Tensor, threshold: float
) -> Callable[[], object]:
    """Return what packs the operand of a sparse product, a part of its time."""
    if product == "grad_weight":
        maps = layout.copy_to_chwn(x, module)
        return lambda: saved.compress(module, maps, None, threshold, -1)
    place, threads = PRODUCTS.index(product), torch.get_num_threads()
    sizes = sizes_of(module, shape.input, shape.weight, shape.stride, shape.padding, shape.dilation, 1).shape
    starts, room = module.weight_starts(sizes, place), module.weight_capacity(sizes, place)
    lists = [torch.empty(starts, dtype=torch.int32), torch.empty(room), torch.empty(room, dtype=torch.int16)]
    to = [module.PackedWeights(), module.PackedWeights()]
    to[place] = module.PackedWeights(*(part.data_ptr() for part in lists))

    def pack() -> object:
        module.pack_weights(sizes, weight.data_ptr(), 0, threshold, *to, 0, threads)
        return lists

    return pack


def _dense_contestants(
    shape: Shape, product: str, x: Tensor, weight: Tensor, gradient: Tensor
) -> dict[str, Callable[[], object]]:
    geometry = shape.stride, shape.padding, shape.dilation, 1
    wanted = product == "grad_input", product == "grad_weight", False

    def multiply(dtype: torch.dtype, order: torch.memory_format) -> Callable[[], object]:
        a, w, g = (tensor.to(dtype=dtype, memory_format=order) for tensor in (x, weight, gradient))
        if product == "forward":
            return lambda: dense.convolution(a, w, None, *geometry)
        return lambda: dense.convolution_backward(g, a, w, *geometry, wanted)

    found = {
        "dense nchw": multiply(torch.float32, torch.contiguous_format),
        "dense channels_last": multiply(torch.float32, torch.channels_last),
    }
    if bfloat16_absent() is None:  # what autocast comes to between two layers: all operands are of it already
        found[DENSE_BFLOAT16] = multiply(torch.bfloat16, torch.channels_last)
    return found


def _figures(samples: dict[str, list[float]], sparsity: float, operations: float) -> Row:
    """Return the row of one sparsity from the times of all contestants."""
    best = faster({name: samples[name] for name in ("dense nchw", "dense channels_last")})
    sparse = samples[f"sparse {sparsity}"]
    dense_ms, sparse_ms = median(samples[best]), median(sparse)
    peers = {name: times for name, times in samples.items() if name.startswith(f"sparseprop {sparsity} ")}
    mine = ("dense", f"sparse {sparsity}", f"packing {sparsity}", *peers)
    narrow = {}
    if DENSE_BFLOAT16 in samples:
        narrow["dense_bfloat16_ms"] = base = median(samples[DENSE_BFLOAT16])
        for name, key in ((BFLOAT16, "bfloat16"), (BLOCKS, "blocks")):
            ms = median(samples[f"{name} {sparsity}"])
            narrow |= {f"{key}_ms": ms, f"{key}_speed_up": base / ms}
        mine += f"{BFLOAT16} {sparsity}", f"{BLOCKS} {sparsity}"
    return {
        "dense_ms": dense_ms,
        "dense_layout": best.removeprefix("dense "),
        "dense_spread": spread(samples[best]),
        "sparse_ms": sparse_ms,
        "sparse_spread": spread(sparse),
        "packing_ms": median(samples[f"packing {sparsity}"]),
        "speed_up": dense_ms / sparse_ms,
        "limit": 1 / (1 - sparsity),
        "gflops_nonzero": operations * (1 - sparsity) / sparse_ms / 1e6,
        "gflops_equivalent": operations / sparse_ms / 1e6,
        "dense_gflops": operations / dense_ms / 1e6,
        "dense_bfloat16_ms": None,
        **narrow,
        "sparseprop_ms": median(peers[faster(peers)]) if peers else None,
        "samples": {name: times for name, times in samples.items() if name.startswith(mine)},
    }
