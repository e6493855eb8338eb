"""What the callbacks take: the settings of `torchswat.sparsify_`, or none for a model that is sparse already."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from torchswat.algorithms import Algorithm
from torchswat.convert import SETTINGS, Sparsity, sparse_layers, sparsify_
from torchswat.errors import InvalidValue, UnknownName


def settings_of(algorithm: str | Algorithm | Sparsity | None, options: dict[str, Any]) -> Sparsity | None:
    """Return the settings that a callback was given, checked; None where it was given none.

    Raises
    ------
    InvalidValue, UnknownName
        For what `Sparsity` refuses, an option it does not have, and options beside a `Sparsity`.

    Examples
    --------
    >>> settings_of(None, {"sparsity": 0.9}).algorithm
    'swat'
    """
    known = [field.name for field in fields(Sparsity)]
    for name in options:
        if name not in known:
            raise UnknownName.of("option", name, known)
    if isinstance(algorithm, Sparsity):
        if options:
            raise InvalidValue(
                f"all the settings are in one Sparsity object; {', '.join(options)} must be left out."
            )
        return algorithm
    if algorithm is None and not options:
        return None
    return Sparsity("swat" if algorithm is None else algorithm, **options)


def make_sparse_(model: nn.Module, settings: Sparsity | None, save_state: bool = False) -> None:
    """Call `torchswat.sparsify_` on `model` unless that was done, with the same settings, before.

    Raises
    ------
    InvalidValue
        Where the model has sparse layers of other settings.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> make_sparse_(model, Sparsity(sparsity=0.5))
    >>> [name for name, _ in sparse_layers(model)]
    ['0']
    """
    if settings is None:
        return
    if next(sparse_layers(model), None) is None:
        sparsify_(model, settings, save_state=save_state)
    elif vars(model).get(SETTINGS) != settings:
        raise InvalidValue(
            f"{type(model).__name__} has sparse layers already, of other settings than the callback's: leave the "
            "options of the callback out to train the model as it is, or call torchswat.desparsify_(model) before."
        )
