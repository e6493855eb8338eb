"""`tune`: measure every product of a model on this machine, and remember which are faster sparse."""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torchswat.convert import sparse_layers
from torchswat.engine import plan
from torchswat.engine.race import race
from torchswat.engine.shape import Choice, Shape
from torchswat.engine.timings import Timing, multiply_adds
from torchswat.errors import InvalidValue
from torchswat.examples import call, copied, random_states_restored
from torchswat.expectation import PRODUCTS, Expected, expected_layer, warn_if_slower
from torchswat.progress import Progress
from torchswat.step_race import race_steps

_SCHEDULE_SAMPLES = (0, *(step * 10**power for power in range(7) for step in range(1, 10)))
_REPEATS = 5


@dataclass(frozen=True)
class TunedLayer:
    """One layer at one sparsity: what it met, and how long its products take.

    Attributes
    ----------
    name : str
        The layer's name in its model.
    shape : Shape
        The sizes that were timed.
    sparsity : float
        Rounded down to a multiple of 0.05.
    timing : Timing
        Milliseconds of the three products, sparse and dense.

    Examples
    --------
    >>> shape = Shape((8, 3, 32, 32), (16, 3, 3, 3), (1, 1), (1, 1))
    >>> timing = Timing(forward=(1.0, 2.0), grad_input=(1.5, 1.0), grad_weight=(1.0, 3.0))
    >>> TunedLayer("conv", shape, 0.8, timing).choice
    Choice(forward=True, grad_input=False, grad_weight=True)
    """

    name: str
    shape: Shape
    sparsity: float
    timing: Timing

    @property
    def choice(self) -> Choice:
        """Which products run sparse from now on."""
        return self.timing.choice()


@dataclass(frozen=True)
class TuningReport:
    """What `tune` found; printed, it is a table.

    Attributes
    ----------
    layers : tuple of TunedLayer
        In the order in which the model runs them.
    file : Path or None
        Where the timings are stored; None where they last as long as the process.

    Examples
    --------
    >>> shape = Shape((8, 3, 32, 32), (16, 3, 3, 3), (1, 1), (1, 1))
    >>> timing = Timing(forward=(1.0, 2.0), grad_input=(1.5, 1.0), grad_weight=(1.0, 3.0))
    >>> print(TuningReport((TunedLayer("conv", shape, 0.8, timing),), file=None))
    layer  shape                     sparsity  forward      grad_input   grad_weight  runs sparse
    conv   8x3x32x32-16x3x3-s11-p11  0.80      1.00 / 2.00  1.50 / 1.00  1.00 / 3.00  forward, grad_weight
    milliseconds, sparse / dense; not stored: they last as long as this process
    """

    layers: tuple[TunedLayer, ...]
    file: Path | None

    def __str__(self) -> str:
        head = ("layer", "shape", "sparsity", *PRODUCTS, "runs sparse")
        rows = [head, *(_row(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        where = f"stored in {self.file}" if self.file else "not stored: they last as long as this process"
        return "\n".join([*(line.rstrip() for line in lines), f"milliseconds, sparse / dense; {where}"])


def _row(layer: TunedLayer) -> tuple[str, ...]:
    times = ["{:.2f} / {:.2f}".format(*getattr(layer.timing, product)) for product in PRODUCTS]
    chosen = ", ".join(product for product in PRODUCTS if getattr(layer.choice, product)) or "nothing"
    return layer.name, str(layer.shape), f"{layer.sparsity:.2f}", *times, chosen


def tune(
    model: nn.Module, example: Any, *, training: bool = True, progress: Progress | None = None
) -> TuningReport:
    """Time the products of every sparse layer of `model`, and let the faster way run from now on.

    A copy of the model runs once on `example`, which tells the sizes that its layers meet. Every product is
    then timed on random operands, sparse and dense. The result holds for similar sizes, too (batch size,
    height and width are rounded up to three significant bits). It is stored for later processes;
    ``torchswat plan`` shows it. Without it a cost model decides. A step of every layer is timed as well,
    which tells this process whether the model as a whole is faster than a dense one (`torchswat.summary`).
    `model` itself and all random states stay as they are.

    Parameters
    ----------
    model : Module
        A model that `torchswat.sparsify_` changed.
    example : Tensor, tuple or mapping
        The input of one step, with the batch size to come; a tuple holds positional arguments, a mapping
        keyword arguments.
    training : bool, default True
        Whether the copy runs in training mode or in evaluation mode.
    progress : callable, optional
        Called after every race with the number done and the number of all.

    Returns
    -------
    TuningReport

    Warns
    -----
    UserWarning
        Once for a model that is expected to be slower than dense, with what helps.

    Raises
    ------
    InvalidValue
        For a model without sparse layers, one that cannot be copied, or one of whose sparse layers none is
        done by the compiled engine.

    Examples
    --------
    >>> import torchswat
    >>> model = torchswat.sparsify_(nn.Sequential(nn.Conv2d(32, 32, 3)), sparsity=0.9)
    >>> report = tune(model, torch.randn(64, 32, 16, 16))
    >>> [layer.name for layer in report.layers]
    ['0']
    """
    if next(sparse_layers(model), None) is None:
        raise InvalidValue(
            f"{type(model).__name__} has no sparse layer to tune; call torchswat.sparsify_ on it first."
        )
    met = sizes_met(model, example, training)
    if not met:
        raise InvalidValue(
            "no layer of the model ran on the compiled engine, so there is nothing to tune; allowed is a "
            "model of float32 on the CPU, without autocast. torchswat.engine.info() says which engine runs."
        )
    raced = _raced(_one_a_bucket(met), progress)
    file = plan.PLAN.learn(raced)
    layers = dict(sparse_layers(model))
    race_steps((layers[name].sparse, shape, sparsity) for name, shape, sparsity in _at_most_sparsity(met))
    warn_if_slower(model, expected_layers(model, met), stacklevel=2)
    return TuningReport(
        tuple(
            TunedLayer(name, shape, plan.rounded(sparsity), raced[plan.key_of(shape, sparsity)])
            for name, shape, sparsity in met
        ),
        file,
    )


Met = tuple[str, Shape, float]  # a layer's name, what it met, and a sparsity of it


def expected_layers(model: nn.Module, met: list[Met]) -> dict[str, Expected]:
    """Return what a step of each layer is expected to take, at the largest of its sparsities."""
    found: dict[str, Expected] = {}
    layers = dict(sparse_layers(model))
    for name, shape, sparsity in _at_most_sparsity(met):
        one = expected_layer(layers[name].sparse, shape, sparsity)
        groups = cast(int, getattr(layers[name], "groups", 1))  # the shape is that of one of them
        one = replace(one, sparse=groups * one.sparse, dense=groups * one.dense)
        before = found.get(name)
        found[name] = one if before is None else _both(before, one)
    return found


def _at_most_sparsity(met: list[Met]) -> list[Met]:
    """Return what was met at the largest sparsity of each layer."""
    largest: dict[str, float] = {}
    for name, _, sparsity in met:
        largest[name] = max(sparsity, largest.get(name, 0.0))
    return [one for one in met if one[2] == largest[one[0]]]


def _both(one: Expected, other: Expected) -> Expected:
    """Return what two calls of a layer take together."""
    runs = tuple(p for p in PRODUCTS if p in one.runs_sparse or p in other.runs_sparse)
    return Expected(one.sparse + other.sparse, one.dense + other.dense, one.tuned and other.tuned, runs)


def sizes_met(model: nn.Module, example: Any, training: bool, progress: Progress | None = None) -> list[Met]:
    """Run a copy of `model` once; return what its layers asked, once for each of their sparsities."""
    with random_states_restored():
        twin = copied(model, "tuning").train(training)
        sparsities: dict[str, list[float]] = {}
        for name, layer in sparse_layers(twin):
            sparsities[name] = _sparsities(layer.sparse.sparsity)
            layer.sparse.sparsity = max(
                sparsities[name]
            )  # in a schedule's first steps the layer may be dense
        shapes = _shapes_asked(twin, example, training, progress)
    return [
        (name, shape, sparsity) for name, shape in shapes for sparsity in sparsities[name] if sparsity > 0
    ]


def _shapes_asked(
    twin: nn.Module, example: Any, training: bool, progress: Progress | None
) -> list[tuple[str, Shape]]:
    """Return the shapes that the sparse layers of `twin` ask for within their own forward."""
    running: list[str] = []
    ran: set[str] = set()
    layers = list(sparse_layers(twin))
    shapes: dict[tuple[str, Shape], None] = {}

    def record(shape: Shape, sparsity: float) -> None:
        if running:
            shapes[running[-1], shape] = None

    def end(*_: Any) -> None:
        ran.add(running.pop())
        if progress is not None:
            progress(len(ran), len(layers))

    for name, layer in layers:
        layer.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        layer.register_forward_hook(end, always_call=True)
    with plan.recorded(record), torch.set_grad_enabled(training):
        call(twin, example)
    return list(shapes)


def _sparsities(sparsity: float | Callable[[int], float]) -> list[float]:
    """Return the different sparsities of a layer, those of a schedule rounded as the plan rounds."""
    if not callable(sparsity):
        return [float(sparsity)]
    return sorted({plan.rounded(float(sparsity(iteration))) for iteration in _SCHEDULE_SAMPLES})


def _one_a_bucket(met: list[Met]) -> dict[str, tuple[Shape, float]]:
    """Return the largest shape of each bucket, whatever the order."""
    largest: dict[str, tuple[Shape, float]] = {}
    for _, shape, sparsity in met:
        key = plan.key_of(shape, sparsity)
        if key not in largest or _size(shape) > _size(largest[key][0]):
            largest[key] = shape, plan.rounded(sparsity)
    return largest


def _size(shape: Shape) -> tuple[int, str]:
    return multiply_adds(shape), str(shape)


def _raced(asked: Mapping[str, tuple[Shape, float]], progress: Progress | None) -> dict[str, Timing]:
    raced = {}
    for done, (key, (shape, sparsity)) in enumerate(asked.items(), start=1):
        raced[key] = race(shape, sparsity, _REPEATS)
        if progress is not None:
            progress(done, len(asked))
    return raced
