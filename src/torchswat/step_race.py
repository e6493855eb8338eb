"""Time a training step of one layer, sparse with all that belongs to it and as torch's own dense layer.

The races of products (`torchswat.engine.race`) decide which of them run sparse; both ways select there. This
one shows whether the layer as a whole is faster than a dense one: selections and calls count, masks do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchswat.convert import Sparsity, sparsify_
from torchswat.engine import layout, plan
from torchswat.engine.shape import Shape
from torchswat.engine.timings import is_matrix, multiply_adds
from torchswat.examples import random_states_restored
from torchswat.layers import LayerSparsity

_BLOCKS = 5  # at least, and a first one that warms up
_ENOUGH_SECONDS = 0.05
_MOST_MULTIPLY_ADDS = 2**31  # of a product: beyond, fewer samples tell as much
_LONGEST_BLOCK = 10  # passes that share one search of the threshold

_measured: dict[tuple, tuple[float, float]] = {}


def measured(sparse: LayerSparsity, shape: Shape, sparsity: float) -> tuple[float, float] | None:
    """Return what `race_steps` found for a layer like this, in this process."""
    return _measured.get(_key(sparse, shape, sparsity))


def _key(sparse: LayerSparsity, shape: Shape, sparsity: float) -> tuple:
    one = next(iter(sparse.selectors.values()))
    settings = one.scope, one.method, one.exact, one.period, sparse.block
    return (plan.path(), plan.key_of(shape, sparsity), sparse.algorithm.name, *settings)


def race_steps(layers: Iterable[tuple[LayerSparsity, Shape, float]]) -> None:
    """Race a step of each layer on a shape at a sparsity, once where several are alike."""
    found: dict[tuple, tuple[float, float]] = {}
    for layer in layers:
        key = _key(*layer)
        if key not in found:
            found[key] = race_step(*layer)
    _measured.update(found)


def race_step(sparse: LayerSparsity, shape: Shape, sparsity: float) -> tuple[float, float]:
    """Return the milliseconds of forward and backward pass of a layer, sparse and dense, in turns.

    The sparse layer gets maps in the CHWN layout, as its neighbours hand them on; the dense one gets the
    faster of torch's layouts.
    """
    samples, smaller = shape.input[0], shape
    while samples > 16 and multiply_adds(smaller) > _MOST_MULTIPLY_ADDS:
        samples //= 2
        smaller = replace(smaller, input=(samples, *shape.input[1:]))
    one = next(iter(sparse.selectors.values()))
    how = one.scope, one.method, one.exact, one.period
    settings = Sparsity(sparse.algorithm, sparsity, *how, block=sparse.block)
    with random_states_restored(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        ours, *theirs = _steps(smaller, settings)
        blocks = min(one.period, _LONGEST_BLOCK)
        times, start = [], time.perf_counter()
        while len(times) <= _BLOCKS or time.perf_counter() - start < _ENOUGH_SECONDS:
            times.append([_block(step, blocks) for step in (ours, *theirs)])
    best = [min(column) * shape.input[0] / samples for column in zip(*times[1:], strict=True)]
    return best[0], min(best[1:])


def _block(step: Callable[[], None], passes: int) -> float:
    """Return the milliseconds of a pass, of `passes` in a row."""
    start = time.perf_counter()
    for _ in range(passes):
        step()
    return 1e3 * (time.perf_counter() - start) / passes


def _steps(shape: Shape, settings: Sparsity) -> list[Callable[[], None]]:
    """Return a step of the sparse layer, and of the dense one in each layout."""
    k, _, *kernel = shape.weight
    if is_matrix(shape):
        x = torch.randn(shape.input[:2])
        layers = [nn.Linear(shape.input[1], k) for _ in range(2)]
        return [_step(sparsify_(layers[0], settings), x), _step(layers[1], x)]
    x = torch.randn(shape.input)
    padding = shape.padding if len(shape.padding) == 2 else "same"  # the only one with a longer side
    geometry = shape.input[1], k, tuple(kernel), shape.stride, padding, shape.dilation
    ours, *theirs = (nn.Conv2d(*geometry) for _ in range(3))  # type: ignore[arg-type]
    sparsify_(ours, settings)
    first = layout.copy_to_chwn(x) if ours.takes_chwn(x) else x  # type: ignore[operator]
    theirs[1] = cast(Any, theirs[1]).to(memory_format=torch.channels_last)
    layouts = x, x.contiguous(memory_format=torch.channels_last)
    return [_step(ours, first), *(_step(layer, one) for layer, one in zip(theirs, layouts, strict=True))]


def _step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.detach().requires_grad_()
    with torch.no_grad():
        gradient = torch.randn_like(layer.eval()(x))  # in the layout of the output
    layer.train()

    def step() -> None:
        x.grad = layer.weight.grad = layer.bias.grad = None  # type: ignore[union-attr]
        layer(x).backward(gradient)

    return step
