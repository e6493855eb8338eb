"""The list of experiments, in the order in which ``torchswat reproduce all`` makes them."""

from __future__ import annotations

from torchswat.errors import UnknownName
from torchswat.experiments import (
    angles,
    lemma,
    live,
    reductions,
    sensitivity,
    time_to_accuracy,
    top_k_cost,
    tradeoff,
)
from torchswat.experiments.outcome import Experiment

_MODULES = (angles, lemma, reductions, top_k_cost, live, sensitivity, tradeoff, time_to_accuracy)
_ORDER = (
    *("9a", "9b", "9c", "9d", "lemma-b1", "7", "8a", "8b", "5-accounts", "top-k-cost"),  # exact, minutes
    "time-to-accuracy",  # first of those that train: the others share some of its runs
    *("inference", "9e", "6b", "4", "5", "2b", "3", "2a", "2c", "6a"),
)
_FOUND = {experiment.figure: experiment for module in _MODULES for experiment in module.EXPERIMENTS}

EXPERIMENTS: dict[str, Experiment] = {figure: _FOUND[figure] for figure in _ORDER}
"""Every experiment by what ``torchswat reproduce`` calls it."""


def experiments(names: list[str]) -> list[Experiment]:
    """Return the experiments of these names, ``all`` being all; ``8`` means 8a and 8b.

    Raises
    ------
    UnknownName
        With the nearest known name.

    Examples
    --------
    >>> [experiment.figure for experiment in experiments(["8", "lemma-b1"])]
    ['lemma-b1', '8a', '8b']
    """
    wanted: set[str] = set()
    for name in names:
        found = list(EXPERIMENTS) if name == "all" else [f for f in EXPERIMENTS if _is_meant(f, name)]
        if not found:
            raise UnknownName.of("figure", name, [*EXPERIMENTS, "all"])
        wanted.update(found)
    return [experiment for figure, experiment in EXPERIMENTS.items() if figure in wanted]


def _is_meant(figure: str, name: str) -> bool:
    return figure == name or (name.isdecimal() and figure[:-1] == name and figure[-1].isalpha())
