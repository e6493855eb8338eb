"""Sparse layers looked at while they train: threshold, angle and density of what each step selects.

Figure 6b of the paper draws the thresholds, Figure 9e the angles. A step that is not looked at costs nothing:
the hooks are there only while a step is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchswat.analysis import angle, masked_angle
from torchswat.blocks import BlockSelector
from torchswat.convert import sparse_layers
from torchswat.engine.state import new_state
from torchswat.layers import SparseLayer
from torchswat.selection import Selector


@dataclass(frozen=True)
class Sight:
    """What was seen of one operand of one layer in one step.

    Attributes
    ----------
    step : int
        Of the training, counted from 1.
    layer, operand : str
        The layer's name in its model; ``weight``, ``activation`` or ``gradient``.
    sparsity : float
        Asked for.
    threshold : float or None
        The magnitude at which entries are kept; the mean over the rows of a scope that has several.
    angle : float or None
        Sparsification angle in degrees; of weights and activations that are selected by magnitude.
    density : float or None
        The share really kept.
    """

    step: int
    layer: str
    operand: str
    sparsity: float
    threshold: float | None = None
    angle: float | None = None
    density: float | None = None


QUANTITIES = tuple(each.name for each in fields(Sight))[4:]


@dataclass
class Watch:
    """Looks at every sparse layer of a model during one step.

    Examples
    --------
    >>> import torchswat
    >>> model = torchswat.sparsify_(nn.Sequential(nn.Linear(8, 8)), sparsity=0.75)
    >>> watch = Watch(model)
    >>> with watch.looking():
    ...     model(torch.randn(4, 8)).sum().backward()
    >>> [(sight.operand, sight.density) for sight in watch.sights(step=1)]
    [('weight', 0.25), ('activation', 0.25)]
    """

    model: nn.Module
    quantities: tuple[str, ...] = QUANTITIES
    _angles: dict[tuple[str, str], float] = field(default_factory=dict)
    _sparsities: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the forward passes within."""
        self._angles.clear()
        handles = [
            layer.register_forward_pre_hook(self._look(name)) for name, layer in sparse_layers(self.model)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def sights(self, step: int) -> list[Sight]:
        """Return what was seen; to be called when the step is over."""
        return [
            Sight(step, name, operand, self._sparsities[name], **self._seen(name, operand, selector))
            for name, layer in sparse_layers(self.model)
            if name in self._sparsities
            for operand, selector in layer.sparse.selectors.items()
        ]

    def _seen(self, name: str, operand: str, selector: Selector) -> dict[str, float | None]:
        threshold = None if selector.threshold is None else float(selector.threshold.double().mean())
        seen = {
            "threshold": None if selector.random else threshold,
            "angle": self._angles.get((name, operand)),
            "density": float(selector.density),
        }
        return {quantity: seen[quantity] for quantity in self.quantities}

    def _look(self, name: str) -> Any:
        @torch.no_grad()
        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sparse = cast(SparseLayer, layer).sparse
            sparsity = self._sparsities[name] = sparse.sparsity_now(sparse.iteration)
            if "angle" not in self.quantities:
                return
            for operand, tensor in (("weight", cast(Tensor, layer.weight)), ("activation", inputs[0])):
                selector = sparse.selectors.get(operand)
                if selector is not None and not selector.random:
                    self._angles[name, operand] = _angle(tensor, sparsity, selector)

        return look


def _angle(tensor: Tensor, sparsity: float, selector: Selector) -> float:
    """Return the angle by which an exact selection now turns an operand."""
    if not isinstance(selector, BlockSelector):
        return float(angle(tensor, sparsity, selector.scope))
    mask = replace(selector, state=new_state())(tensor, sparsity, 0, remember=False)
    return float(masked_angle(tensor.flatten(), mask.flatten()))
