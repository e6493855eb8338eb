"""How near the products of a network's layers come to what this machine can do, and its whole step beside them.

Two limits hold for a product: its multiply-adds on entries that are kept, at the peak rate of registers, and its
bytes, each operand and the result once, at the rate of a copy in memory (Williams, Waterman and Patterson 2009,
doi:10.1145/1498765.1498785). For a step the two are added up over all sparse layers, with every input, output and
gradient moved once, weights and their gradients twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from torchswat import models
from torchswat.bench.peak import peak_bandwidth, peak_gflops
from torchswat.bench.products import PRODUCTS
from torchswat.bench.race import Tick, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.bench.step import NETWORKS, Search, check_networks, dense_steps, sparse_step
from torchswat.convert import sparse_layers, sparsify_
from torchswat.engine import info
from torchswat.engine.race import contestants
from torchswat.engine.shape import Shape, shape_of
from torchswat.engine.timings import multiply_adds, output_positions
from torchswat.errors import MissingDependency
from torchswat.selection import check_sparsity

FLOAT = 4  # bytes


def bench_roofline(
    networks: Sequence[str] = ("resnet18",),
    sparsity: float = 0.8,
    repeats: int = 7,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time the three sparse products of every size that a network has, and set them against both limits.

    Parameters
    ----------
    networks : sequence of str
        Names in `torchswat.bench.step.NETWORKS`, with the batch sizes of that list.
    sparsity : float, default 0.8
        In [0, 1).
    repeats : int, default 7
        Timed rounds.
    seed : int, default 0
        Of the operands.
    tick : callable
        Called ``rounds(networks, repeats)`` times.

    Returns
    -------
    Record
        A row for each product of each size; in the summary a line for each network's step.

    Raises
    ------
    UnknownName, InvalidValue
        For a network that is not in the list, or a sparsity outside [0, 1).
    MissingDependency
        Without the compiled engine.
    """
    check_networks(networks)
    check_sparsity(sparsity)
    situation = circumstances(seed, repeats)
    peak = peak_gflops()
    if peak is None:
        raise MissingDependency(f"sparse products need the compiled engine: {info()['reason']}.")
    memory = list(peak_bandwidth().values())[-1]
    situation["peak_gflops"], situation["memory_gbs"] = peak["registers"], memory
    rows, summary = [], []
    for name in networks:
        torch.manual_seed(seed)
        layers = shapes_of(name)
        rows += _products(name, layers, sparsity, repeats, seed, tick, situation)
        summary.append(_step(name, layers, sparsity, repeats, tick, situation))
    return Record("roofline", situation, rows, summary, [])


def rounds(networks: Sequence[str], repeats: int) -> int:
    """Return how often `bench_roofline` calls its `tick`."""
    return 2 * len(networks) * (repeats + 1)


def shapes_of(name: str) -> list[tuple[Shape, bool]]:
    """Return the shape of each sparse convolution of a network, and whether its input has a gradient.

    Examples
    --------
    >>> layers = shapes_of("resnet20")
    >>> len(layers), str(layers[0][0]), layers[0][1], layers[1][1]
    (19, '16x3x32x32-16x3x3-s11-p11', False, True)
    """
    network = NETWORKS[name]
    model = sparsify_(models.create(name, form=network.form), "swat", 0.5)
    facts, found = models.info(name, network.form), []

    def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        (x,) = args
        if x.dim() == 4:
            geometry = layer.stride, layer.padding, layer.dilation, layer.groups
            found.append((shape_of(tuple(x.shape), tuple(layer.weight.shape), *geometry), x.requires_grad))  # type: ignore[arg-type]

    for _, layer in sparse_layers(model):
        layer.register_forward_hook(note)
    images = torch.zeros(2, facts.in_channels, facts.image_size, facts.image_size)
    model.eval()(images)
    batch = network.batch_size
    return [(replace(shape, input=(batch, *shape.input[1:])), needed) for shape, needed in found]


def _bytes(shape: Shape) -> tuple[int, int, int]:
    """Return the bytes of input, output and weight."""
    n, k = shape.input[0], shape.weight[0]
    output = n * k * math.prod(output_positions(shape))
    return FLOAT * math.prod(shape.input), FLOAT * output, FLOAT * math.prod(shape.weight)


def _products(
    name: str,
    layers: Sequence[tuple[Shape, bool]],
    sparsity: float,
    repeats: int,
    seed: int,
    tick: Tick,
    peaks: Row,
) -> list[Row]:
    counts = Counter(
        (shape, place) for shape, needed in layers for place in range(len(PRODUCTS)) if needed or place != 1
    )  # of the first layer no gradient of the input is asked for
    ways = {shape: contestants(shape, sparsity, seed=seed) for shape, _ in layers}
    runs = {(shape, place): ways[shape][place][0] for shape, place in counts}
    names = {f"{shape} {PRODUCTS[place]}": run for (shape, place), run in runs.items()}
    with torch.no_grad():
        samples = race(names, repeats, tick)
    rows = []
    for shape, place in runs:
        times = samples[f"{shape} {PRODUCTS[place]}"]
        operations = 2 * multiply_adds(shape) * (1 - sparsity)
        moved = sum(_bytes(shape))  # two operands and a result, whichever they are
        limits = {
            "operations": operations / peaks["peak_gflops"] / 1e6,
            "bytes": moved / peaks["memory_gbs"] / 1e6,
        }
        bound = max(limits, key=limits.__getitem__)
        rows.append(
            {
                "network": name,
                "sizes": str(shape),
                "layers": counts[shape, place],
                "product": PRODUCTS[place],
                "sparsity": sparsity,
                "operations": operations,
                "bytes": moved,
                "operations_ms": limits["operations"],
                "bytes_ms": limits["bytes"],
                "bound": bound,
                "ms": median(times),
                "spread": spread(times),
                "gflops": operations / median(times) / 1e6,
                "reached": limits[bound] / median(times),
                "samples": {"sparse": times},
            }
        )
    return rows


def lower_bound(
    layers: Sequence[tuple[Shape, bool]], sparsity: float, gflops: float, gbs: float
) -> tuple[float, float]:
    """Return the milliseconds that a step's multiply-adds on kept entries and its bytes take at these peaks.

    Examples
    --------
    >>> layers = [(Shape((1, 2, 4, 4), (3, 2, 1, 1), (1, 1), (0, 0)), True)]
    >>> operations, moved = lower_bound(layers, 0.5, gflops=1.0, gbs=1.0)
    >>> round(operations * 1e6), round(moved * 1e6)
    (288, 736)
    """
    operations = moved = 0.0
    for shape, needed in layers:
        operations += 2 * multiply_adds(shape) * (1 - sparsity) * (2 + needed)
        source, result, weight = _bytes(shape)
        moved += (1 + needed) * source + 2 * result + 4 * weight
    return operations / gflops / 1e6, moved / gbs / 1e6


def _step(
    name: str, layers: Sequence[tuple[Shape, bool]], sparsity: float, repeats: int, tick: Tick, peaks: Row
) -> Row:
    network = NETWORKS[name]
    model, facts = models.create(name, form=network.form), models.info(name, network.form)
    images = torch.randn(network.batch_size, facts.in_channels, *[facts.image_size] * 2)
    classes = torch.randint(facts.num_classes, (network.batch_size,))
    sparse = sparse_step(model, images, classes, sparsity, Search("histogram", 1))
    dense = dense_steps(model, images, classes)
    race_of = {"sparse": partial(sparse, 0), **{how: dense[how] for how in ("nchw", "channels_last")}}
    samples = race(race_of, repeats, tick)
    parts = lower_bound(layers, sparsity, peaks["peak_gflops"], peaks["memory_gbs"])
    step_ms = median(samples["sparse"])
    return {
        "network": name,
        "batch_size": network.batch_size,
        "sparsity": sparsity,
        "operations_ms": parts[0],
        "bytes_ms": parts[1],
        "step_ms": step_ms,
        "spread": spread(samples["sparse"]),
        "dense_ms": min(median(samples[how]) for how in ("nchw", "channels_last")),
        "over_bound": step_ms / sum(parts),
        "target": 2.0,
        "samples": samples,
    }
