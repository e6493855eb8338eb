"""Whole training steps: forward, loss, backward and optimizer, sparse against dense, with all costs in.

The dense side runs in NCHW and in channels_last and the faster one counts; under bfloat16 autocast it is one
more line. Every contestant is a model of its own, trained on one batch of random images. A selection with
a period is timed as a step that searches and one that does not; what counts is the mean over a period.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat import models
from torchswat.bench.breakdown import breakdown
from torchswat.bench.products import SPARSITIES, bfloat16_absent
from torchswat.bench.race import Tick, faster, median, race, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.convert import Sparsity, sparse_layers, sparsify_
from torchswat.engine import info
from torchswat.errors import InvalidValue, UnknownName
from torchswat.fuse import fuse_
from torchswat.selection import check_sparsity


@dataclass(frozen=True)
class Network:
    """A network as it is timed: its form, and how many images of which size are a batch."""

    name: str
    form: str
    batch_size: int
    targets: dict[float, float]
    """Speed-up of a step that the engine was built for, by sparsity."""


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("resnet18", "cifar", 128, {0.5: 1.35, 0.7: 1.9, 0.8: 2.4, 0.9: 3.3}),
        Network("vgg16", "cifar", 128, {0.5: 1.5, 0.7: 2.2, 0.8: 2.8, 0.9: 4.0}),
        Network("resnet50", "imagenet", 16, {0.8: 1.9}),
        Network("densenet121", "cifar", 64, {0.8: 1.9}),
        Network("wrn28-10", "cifar", 128, {0.8: 2.6}),
        Network("resnet20", "cifar", 16, dict.fromkeys(SPARSITIES, 1.0)),
    )
}
STANDARD = ("resnet18", "vgg16")
NARROW = "bfloat16 autocast"

AVX2_TARGETS = {0.8: 1.8}
"""The same of the standard networks where both sides are held to AVX2."""


@dataclass(frozen=True)
class Search:
    """How a network is made sparse: how thresholds are found, every how many iterations, in which precision.

    Examples
    --------
    >>> Search.parse("histogram:10")
    Search(method='histogram', period=10, bfloat16=False, block=(1, 1))
    >>> str(Search.parse("histogram+bfloat16+2x2"))
    'histogram:1+bfloat16+2x2'
    """

    method: str
    period: int
    bfloat16: bool = False
    """Under bfloat16 autocast."""
    block: tuple[int, int] = (1, 1)
    """Filters x input channels that are selected together."""

    @classmethod
    def parse(cls, text: str) -> Search:
        """Read ``METHOD[:PERIOD][+bfloat16][+FILTERSxCHANNELS]``."""
        first, *options = text.split("+")
        method, _, period = first.partition(":")
        narrow, block = False, (1, 1)
        for option in options:
            sides = option.split("x")
            if option == "bfloat16":
                narrow = True
            elif len(sides) == 2 and all(side.isdecimal() for side in sides):
                block = int(sides[0]), int(sides[1])
            else:
                raise cls._unreadable(text)
        if period and not period.isdecimal():
            raise cls._unreadable(text)
        settings = Sparsity(method=method, period=int(period or 1), block=block)  # which checks them
        return cls(settings.method, settings.period, narrow, settings.block)

    @staticmethod
    def _unreadable(text: str) -> InvalidValue:
        return InvalidValue(
            f"selection {text!r}: write METHOD:PERIOD, such as histogram:10, and behind it +bfloat16 or a block "
            "such as +2x2."
        )

    def __str__(self) -> str:
        block = "" if self.block == (1, 1) else "+{}x{}".format(*self.block)
        return f"{self.method}:{self.period}{'+bfloat16' * self.bfloat16}{block}"

    def iterations(self) -> dict[int, float]:
        """Return the iterations to time, with their share of a period: one searches, one need not."""
        return {0: 1.0} if self.period == 1 else {0: 1 / self.period, 1: 1 - 1 / self.period}


SEARCHES = tuple(
    map(
        Search.parse,
        ("histogram:1", "histogram:10", "histogram:1+bfloat16", "histogram:1+bfloat16+2x2"),
    )
)
"""Exact in every iteration, exact in every tenth, and the first in bfloat16, with blocks of 2x2 beside it."""


def bench_step(
    networks: Sequence[str] = STANDARD,
    sparsities: Sequence[float] = SPARSITIES,
    searches: Sequence[Search] = SEARCHES,
    repeats: int = 10,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time whole training steps of `networks` with SWAT at `sparsities` against dense ones.

    The optimizer is fused SGD with momentum 0.9 and weight decay 1e-4.

    Parameters
    ----------
    networks : sequence of str
        Names in `NETWORKS`.
    sparsities : sequence of float
        In (0, 1).
    searches : sequence of Search
        Each is a line of its own.
    repeats : int, default 10
        Timed rounds; each runs every contestant once.
    seed : int, default 0
        Of weights and images.
    tick : callable
        Called ``rounds(networks, repeats)`` times.

    Returns
    -------
    Record

    Raises
    ------
    UnknownName, InvalidValue
        For a network that is not in the list, or a sparsity outside [0, 1).
    """
    check_networks(networks)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    situation = circumstances(seed, repeats)
    rows = []
    for name in networks:
        torch.manual_seed(seed)
        rows += _compare(NETWORKS[name], sparsities, searches, repeats, tick)
    reason = bfloat16_absent()
    return Record("step", situation, rows, [], [reason] if reason else [])


def check_networks(names: Sequence[str]) -> None:
    """Raise `UnknownName` for a name that is not in `NETWORKS`."""
    for name in names:
        if name not in NETWORKS:
            raise UnknownName.of("network to time", name, NETWORKS)


def rounds(networks: Sequence[str], repeats: int) -> int:
    """Return how often `bench_step` calls its `tick`."""
    return len(networks) * (repeats + 2)


# ---- one network -------------------------------------------------------------------------------------------


class Step:
    """A model with its optimizer and one batch; calling it is a training step."""

    def __init__(self, model: nn.Module, images: Tensor, classes: Tensor, autocast: bool = False) -> None:
        self.model: nn.Module = model.train()
        self.images, self.classes, self.autocast = images, classes, autocast
        settings: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "fused": True}
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), **settings)

    def __call__(self, iteration: int | None = None) -> None:
        """Do one step, as the `iteration`-th of the sparse layers where that is given."""
        if iteration is not None:
            for _, layer in sparse_layers(self.model):
                layer.sparse.iteration = iteration
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            loss = F.cross_entropy(self.model(self.images), self.classes)
        loss.backward()
        self.optimizer.step()


def sparse_step(
    model: nn.Module, images: Tensor, classes: Tensor, sparsity: float, search: Search
) -> Callable[..., None]:
    """Return a step of a sparse and fused copy of `model`; it may be told which iteration it is."""
    options: dict[str, Any] = {"method": search.method, "period": search.period, "block": search.block}
    sparse = sparsify_(copy.deepcopy(model), "swat", sparsity, **options)
    fuse_(sparse)
    return Step(sparse, images, classes, search.bfloat16)


def _compare(
    network: Network, sparsities: Sequence[float], searches: Sequence[Search], repeats: int, tick: Tick
) -> list[Row]:
    model_info = models.info(network.name, network.form)
    model = models.create(network.name, form=network.form)
    images = torch.randn(network.batch_size, model_info.in_channels, *[model_info.image_size] * 2)
    classes = torch.randint(model_info.num_classes, (network.batch_size,))
    dense = dense_steps(model, images, classes)
    sparse = {
        (sparsity, search): sparse_step(model, images, classes, sparsity, search)
        for sparsity in sparsities
        for search in searches
    }
    contestants: dict[str, Callable[[], object]] = dict(dense)
    for (sparsity, search), step in sparse.items():
        for iteration in search.iterations():
            contestants[_name(sparsity, search, iteration)] = partial(step, iteration)
    samples = race(contestants, repeats, tick)

    best = faster({name: samples[name] for name in ("nchw", "channels_last")})
    dense_ms = median(samples[best])
    size = {"network": network.name, "form": network.form, "batch_size": network.batch_size}
    narrow_ms = median(samples[NARROW]) if NARROW in samples else None
    rows = [
        {**size, "algorithm": "dense", "how": name, "sparsity": None}
        | _figures(samples[name], dense_ms, narrow_ms, network.batch_size)
        for name in dense
    ]
    for (sparsity, search), step in sparse.items():
        times, parts = _over_period(samples, sparsity, search), {}
        for iteration, share in search.iterations().items():
            for kind, ms in breakdown(partial(step, iteration)).items():
                parts[kind] = parts.get(kind, 0.0) + share * ms
        rows.append(
            {**size, "algorithm": "swat", "how": str(search), "sparsity": sparsity}
            | _figures(times, dense_ms, narrow_ms, network.batch_size)
            | {
                "target": _target(network, sparsity, search),
                "limit": 1 / (1 - sparsity),
                "finding_share": parts["selection"] / sum(parts.values()),
                "compressing_share": parts["saving"] / sum(parts.values()),
                "breakdown_ms": parts,
                "samples": {
                    name: samples[name] for name in (_name(sparsity, search, i) for i in search.iterations())
                },
            }
        )
    tick()
    return rows


def _target(network: Network, sparsity: float, search: Search) -> float | None:
    """Return the speed-up that the engine was built for, on the instruction set that runs."""
    if search.bfloat16:
        return None
    if info()["isa"] == "avx2" and network.name in STANDARD:
        return AVX2_TARGETS.get(sparsity)
    return network.targets.get(sparsity) if str(info()["isa"]).startswith("avx512") else None


def dense_steps(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Step]:
    """Return steps of dense copies of `model` in both layouts, and under bfloat16 autocast where that is multiplied."""

    def channels_last() -> tuple[nn.Module, Tensor, Tensor]:
        layout = torch.channels_last
        other = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        return other, images.contiguous(memory_format=layout), classes

    steps = {
        "nchw": Step(copy.deepcopy(model), images, classes),
        "channels_last": Step(*channels_last()),
    }
    if bfloat16_absent() is None:
        steps[NARROW] = Step(*channels_last(), autocast=True)
    return steps


def _name(sparsity: float, search: Search, iteration: int) -> str:
    kind = "search" if iteration == 0 else "reuse"
    return f"swat {sparsity} {search} {kind}"


def _over_period(samples: dict[str, list[float]], sparsity: float, search: Search) -> list[float]:
    """Return, for each round, the mean milliseconds of a step over a period."""
    weighted = [
        [share * ms for ms in samples[_name(sparsity, search, iteration)]]
        for iteration, share in search.iterations().items()
    ]
    return [sum(parts) for parts in zip(*weighted, strict=True)]


def _figures(times: list[float], dense_ms: float, narrow_ms: float | None, batch_size: int) -> Row:
    return {
        "step_ms": median(times),
        "spread": spread(times),
        "images_per_second": 1000 * batch_size / median(times),
        "speed_up": dense_ms / median(times),
        "speed_up_over_bfloat16": narrow_ms and narrow_ms / median(times),
        "samples": {"step": times},
    }
