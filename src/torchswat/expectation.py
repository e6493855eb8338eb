"""How long a training step of the sparse layers is expected to take, beside dense ones, by the tuned plan.

After `torchswat.tune` a layer's time is that of a step that was measured (`torchswat.step_race`). Otherwise
it is that of its three products (tuned in another process, or by the cost model) and of its selections; the
constants below are medians of the kernels on one thread of an AMD Zen 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import nn

from torchswat.convert import sparse_layers
from torchswat.engine import plan
from torchswat.engine.arguments import FORWARD_WEIGHT, GRAD_INPUT_WEIGHT, GRAD_WEIGHT_ACTIVATION
from torchswat.engine.shape import Shape
from torchswat.layers import LayerSparsity
from torchswat.step_race import measured

PRODUCTS = {
    "forward": FORWARD_WEIGHT,
    "grad_input": GRAD_INPUT_WEIGHT,
    "grad_weight": GRAD_WEIGHT_ACTIVATION,
}
"""The three products, each with the operand that is selected for it."""

_EXACT, _COUNT, _SAMPLE, _MASK = 0.30, 0.03, 0.03, 0.15  # milliseconds for a million entries, on one thread
_PASS = 0.03  # milliseconds of one layer beside its kernels
_NOTICEABLE = 0.97  # of the dense speed: what is nearer is within the model's error


@dataclass(frozen=True)
class Expected:
    """Milliseconds of a training step.

    Attributes
    ----------
    sparse, dense : float
    tuned : bool
        Whether every product was measured on this machine (`torchswat.tune`); else the cost model has a part.
    runs_sparse : tuple of str
        Of one layer: which of its products run sparse.
    """

    sparse: float
    dense: float
    tuned: bool
    runs_sparse: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times faster than dense the step is."""
        return self.dense / self.sparse if self.sparse else 1.0


def expected_layer(sparse: LayerSparsity, shape: Shape, sparsity: float) -> Expected:
    """Return what a step of one layer is expected to take on one shape."""
    timing, tuned = plan.PLAN.timing(shape, sparsity)
    choice = plan.choose(shape, sparsity)
    runs_sparse = tuple(p for p, slot in PRODUCTS.items() if sparse.slots & slot and getattr(choice, p))
    whole = measured(sparse, shape, sparsity)
    if whole is not None:
        return Expected(*whole, tuned, runs_sparse)
    times = {product: getattr(timing, product) for product in PRODUCTS}
    dense = sum(time for _, time in times.values()) - _masks(shape)
    taken = sum(time[0 if product in runs_sparse else 1] for product, time in times.items())
    return Expected(taken + _selection(sparse, shape) + _PASS, dense, tuned, runs_sparse)


def _masks(shape: Shape) -> float:
    """Return the milliseconds that the dense products spend on zeros that a dense layer does not have."""
    entries = 2 * torch.Size(shape.weight).numel() + torch.Size(shape.input).numel()
    return _MASK * entries / 1e6 / torch.get_num_threads()


def _selection(sparse: LayerSparsity, shape: Shape) -> float:
    """Return the milliseconds of a layer's selections in a step, averaged over a period."""
    weights = torch.Size(shape.weight).numel() if "weight" in sparse.selectors else 0
    activations = torch.Size(shape.input).numel() if "activation" in sparse.selectors else 0
    selector = next(iter(sparse.selectors.values()))
    search = _SAMPLE if selector.method == "sample" else _EXACT
    entry = _COUNT + search / selector.period
    return entry * (weights + activations) / 1e6 / torch.get_num_threads()


def total(layers: Iterable[Expected]) -> Expected | None:
    """Return the sum over layers, or None where there are none."""
    each = list(layers)
    if not each:
        return None
    return Expected(sum(e.sparse for e in each), sum(e.dense for e in each), all(e.tuned for e in each))


_warned: WeakSet[nn.Module] = WeakSet()


def warn_if_slower(model: nn.Module, by_layer: dict[str, Expected], stacklevel: int) -> None:
    """Warn, once for a model, where it is expected to be slower than dense.

    Warns
    -----
    UserWarning
        With both times, and what helps.
    """
    whole = total(by_layer.values())
    if whole is None or whole.speedup >= _NOTICEABLE or model in _warned:
        return
    _warned.add(model)
    losses = sorted(by_layer, key=lambda name: by_layer[name].dense - by_layer[name].sparse)
    layers = dict(sparse_layers(model))
    selectors = [s for name in by_layer if name in layers for s in layers[name].sparse.selectors.values()]
    helps = [
        f"skip=({', '.join(map(repr, losses[:3]))}) leaves the layers dense that lose most",
        "a larger batch",
    ]
    if any(s.period == 1 for s in selectors):
        helps.insert(0, "period=10 keeps thresholds for ten iterations")
    if any(s.method != "sample" for s in selectors):
        helps.insert(0, "method='sample' estimates thresholds")
    source = "the tuned plan" if whole.tuned else "the cost model (torchswat.tune measures)"
    warnings.warn(
        f"by {source}, a training step of this model's sparse layers takes {whole.sparse:.2f} ms where "
        "dense ones take "
        f"{whole.dense:.2f} ms: {whole.speedup:.2f} times their speed. What helps: {'; '.join(helps)}.",
        stacklevel=stacklevel + 1,
    )
