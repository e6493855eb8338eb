"""What a sparse training keeps and saves, as numbers with names that any logger takes."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from torch import nn

from torchswat.accounting import cost
from torchswat.convert import sparse_layers
from torchswat.layers import SparseLayer

PREFIX = "torchswat"
_SAVINGS = {"macs": "macs_saving", "weights": "weight_bytes_saving", "activations": "activation_bytes_saving"}


def measures(model: nn.Module, example: Any = None, by_layer: bool = False) -> dict[str, float]:
    """Return sparsity, densities, thresholds and counted savings of the last iteration of training.

    Parameters
    ----------
    model : Module
        With sparse layers; those that have not run yet are left out.
    example : Tensor, tuple or mapping, optional
        An input of the model, as `torchswat.cost` takes it. A copy of the model runs one step on it, which counts
        the savings: how many times fewer multiply-accumulates and bytes than dense.
    by_layer : bool, default False
        Whether the numbers of every layer are there, beside their means over the layers.

    Returns
    -------
    dict of str to float
        ``torchswat/<quantity>``, and ``torchswat/<quantity>/<layer>``.

    Examples
    --------
    >>> import torch, torchswat
    >>> model = torchswat.sparsify_(nn.Sequential(nn.Linear(10, 10)), sparsity=0.8)
    >>> model(torch.randn(4, 10)).sum().backward()
    >>> found = measures(model, torch.randn(4, 10))
    >>> [found[f"torchswat/{name}"] for name in ("sparsity", "weight_density", "macs_saving")]
    [0.8, 0.2, 5.0]
    """
    found: dict[str, dict[str, float]] = {}
    for name, layer in sparse_layers(model):
        for quantity, value in _of_layer(layer).items():
            found.setdefault(quantity, {})[name] = value
    numbers = {f"{PREFIX}/{quantity}": fmean(values.values()) for quantity, values in found.items()}
    if by_layer:
        for quantity, values in found.items():
            numbers |= {f"{PREFIX}/{quantity}/{name}": value for name, value in values.items()}
    if example is not None:
        counted = cost(model, example)
        numbers |= {f"{PREFIX}/{name}": counted.total(count).saving for count, name in _SAVINGS.items()}
    return numbers


def _of_layer(layer: SparseLayer) -> dict[str, float]:
    """Return the numbers of one layer; none before its first iteration."""
    sparse = layer.sparse
    if sparse.iteration == 0:
        return {}
    sparsity = sparse.sparsity_now(sparse.last_iteration())
    numbers = {"sparsity": float(sparsity)}
    for operand, selector in sparse.selectors.items():
        numbers[f"{operand}_density"] = selector.density if sparsity else 1.0
        if sparsity and not selector.random and selector.threshold is not None:
            numbers[f"{operand}_threshold"] = float(selector.threshold.double().mean())
    return numbers
