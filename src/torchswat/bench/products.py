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
from dataclasses import dataclass, replace
from functools import partial
from statistics import geometric_mean

import torch
from torch import Tensor

from torchswat.bench import peer
from torchswat.bench.peak import peak_gflops
from torchswat.bench.race import Tick, faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.engine import info
from torchswat.engine import kernels as ops
from torchswat.engine.packed import PackedConv2dProducts, Shape
from torchswat.engine.products import Conv2dProducts, Form
from torchswat.engine.race import contestants as race_of
from torchswat.engine.topk import Selection
from torchswat.errors import UnknownName
from torchswat.selection import check_sparsity, keep_largest, kept_count

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
        Of the operands, which are normal random numbers.
    tick : callable
        Called ``rounds(shapes, repeats)`` times.

    Returns
    -------
    Record

    Raises
    ------
    UnknownName, InvalidValue
        For a shape that is not in the list, or a sparsity outside [0, 1).
    """
    check_shapes(shapes)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    situation = circumstances(seed, repeats)
    rows = []
    for name in shapes:
        for product in PRODUCTS:
            torch.manual_seed(seed)
            rows += _compare(name, SHAPES[name], product, sparsities, repeats, tick)
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


@dataclass(frozen=True)
class _Operands:
    """The tensors of a convolution in one layout, and how one of its products takes them."""

    product: str
    x: Tensor  # (N, C, H, W)
    weight: Tensor  # (K, C, R, S)
    gradient: Tensor  # (N, K, P, Q)

    def selected(self) -> Tensor:
        """Return the operand that the paper makes sparse in this product."""
        return self.x if self.product == "grad_weight" else self.weight

    def pack(self, products: Conv2dProducts, selection: Selection | None) -> Form:
        if self.product == "forward":
            return products.forward_weight(self.weight, selection)
        if self.product == "grad_input":
            return products.grad_input_weight(self.weight, selection)
        return products.grad_weight_activation(self.x, selection)

    def multiply(self, products: Conv2dProducts, selection: Selection | None = None) -> Tensor:
        form = self.pack(products, selection)
        if self.product == "forward":
            return products.forward(self.x, form, None)
        if self.product == "grad_input":
            return products.grad_input(self.gradient, form, self.x)
        return products.grad_weight(self.gradient, form, self.weight)

    def to(self, change: Callable[[Tensor], Tensor]) -> _Operands:
        return _Operands(self.product, *map(change, (self.x, self.weight, self.gradient)))


@torch.no_grad()
def _compare(
    name: str, shape: Shape, product: str, sparsities: Sequence[float], repeats: int, tick: Tick
) -> list[Row]:
    """Race one product of one shape: dense in every layout, sparse at every sparsity."""
    sizes = list(shape.input), list(shape.weight), list(shape.stride), list(shape.padding)
    output = ops.output_size(*sizes)
    nchw = _Operands(product, *map(torch.randn, (shape.input, shape.weight, output)))
    contestants = _dense_contestants(shape, nchw)
    chwn = _Operands(product, ops.to_chwn(nchw.x), nchw.weight, ops.to_chwn(nchw.gradient))
    products = PackedConv2dProducts(shape.stride, shape.padding, shape=shape)
    density = {}
    for sparsity in sparsities:
        operand = chwn.selected()
        kept = kept_count(operand.numel(), sparsity)
        density[sparsity] = kept / operand.numel()
        _, selection = keep_largest(operand, kept, scope="nchw", method="histogram")
        contestants[f"packing {sparsity}"] = partial(chwn.pack, products, selection)
        contestants[f"sparse {sparsity}"] = partial(chwn.multiply, products, selection)
        if DENSE_BFLOAT16 in contestants:
            for name_of, block in ((BFLOAT16, (1, 1)), (BLOCKS, (2, 2))):
                ways = race_of(replace(shape, narrow=True), sparsity, block)
                contestants[f"{name_of} {sparsity}"] = ways[PRODUCTS.index(product)][0]
        if product == "forward":
            contestants.update(peer.contestants(shape, nchw.x, selection.kept(nchw.weight), sparsity))
    samples = race(contestants, repeats, tick)
    operations = 2 * math.prod(output) * math.prod(shape.weight[1:])
    return [
        {"shape": name, "sizes": str(shape), "product": product, "sparsity": sparsity}
        | _figures(samples, sparsity, operations, density[sparsity])
        for sparsity in sparsities
    ]


def _dense_contestants(shape: Shape, nchw: _Operands) -> dict[str, Callable[[], object]]:
    products = Conv2dProducts(shape.stride, shape.padding)
    channels_last = nchw.to(lambda tensor: tensor.contiguous(memory_format=torch.channels_last))
    dense: dict[str, Callable[[], object]] = {
        "dense nchw": partial(nchw.multiply, products),
        "dense channels_last": partial(channels_last.multiply, products),
    }
    if bfloat16_absent() is None:  # what autocast comes to between two layers: all operands are of it already
        dense[DENSE_BFLOAT16] = partial(channels_last.to(Tensor.bfloat16).multiply, products)
    return dense


def _figures(samples: dict[str, list[float]], sparsity: float, operations: float, density: float) -> Row:
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
        "gflops_nonzero": operations * density / sparse_ms / 1e6,
        "gflops_equivalent": operations / sparse_ms / 1e6,
        "dense_gflops": operations / dense_ms / 1e6,
        "dense_bfloat16_ms": None,
        **narrow,
        "sparseprop_ms": median(peers[faster(peers)]) if peers else None,
        "samples": {name: times for name, times in samples.items() if name.startswith(mine)},
    }
