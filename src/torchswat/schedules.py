"""Sparsity as a function of the iteration: small callables that `torchswat.sparsify_` takes for a number.

>>> import torch, torchswat
>>> ramp = torchswat.schedules.Cubic(final=0.8, steps=2000)
>>> model = torchswat.sparsify_(torch.nn.Linear(100, 10), sparsity=ramp)

Iterations are passes of training. Where a step of the optimizer takes several (gradient accumulation, SAM),
let them be its steps:

>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> handle = torchswat.count_steps_(model, optimizer)
>>> for step in range(3):
...     for half in torch.randn(2, 16, 100):
...         model(half).square().mean().backward()
...     optimizer.step()
>>> model.sparse.iteration
3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchswat.errors import InvalidValue
from torchswat.selection import check_sparsity


@dataclass(frozen=True)
class Cubic:
    """Rise from `initial` to `final` over `steps` iterations, fast at first.

    ``final + (initial - final) * (1 - t)^3`` with ``t`` from 0 at iteration `begin` to 1 at
    ``begin + steps``; constant before and after.

    Parameters
    ----------
    final : float
        Sparsity at the end, in [0, 1).
    steps : int
        Iterations of the rise, at least 1.
    initial : float, default 0.0
        Sparsity before, in [0, 1).
    begin : int, default 0
        Iteration at which the rise begins.

    Raises
    ------
    InvalidValue
        For a sparsity or an iteration outside these ranges.

    References
    ----------
    Zhu and Gupta 2017, *To prune, or not to prune*, arXiv:1710.01878, section 3, equation 1.

    Examples
    --------
    >>> ramp = Cubic(final=0.8, steps=100)
    >>> [round(ramp(i), 2) for i in (0, 50, 100, 1000)]
    [0.0, 0.7, 0.8, 0.8]
    """

    final: float
    steps: int
    initial: float = 0.0
    begin: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.final, "final")
        check_sparsity(self.initial, "initial")
        if self.steps < 1 or self.begin < 0:
            raise InvalidValue(
                f"steps = {self.steps}, begin = {self.begin}; allowed is steps >= 1 and begin >= 0."
            )

    @property
    def last(self) -> int:
        """The iteration from which on the sparsity is constant."""
        return self.begin + self.steps

    def __call__(self, iteration: int) -> float:
        t = min(1.0, max(0.0, (iteration - self.begin) / self.steps))
        return self.final + (self.initial - self.final) * (1 - t) ** 3


@dataclass(frozen=True)
class Steps:
    """Hold a sparsity from one iteration to the next of a list.

    Parameters
    ----------
    values : tuple of (int, float)
        Iteration and the sparsity from there on, iterations ascending from 0.

    Raises
    ------
    InvalidValue
        For iterations that do not ascend from 0, or a sparsity outside [0, 1).

    Examples
    --------
    >>> dense_first = Steps(((0, 0.0), (1000, 0.8)))
    >>> dense_first(999), dense_first(1000)
    (0.0, 0.8)
    """

    values: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.values]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise InvalidValue(
                f"the iterations of Steps are {starts}; allowed are ascending ones that begin with 0."
            )
        for start, sparsity in self.values:
            check_sparsity(sparsity, f"the sparsity from iteration {start}")

    @property
    def last(self) -> int:
        """The iteration from which on the sparsity is constant."""
        return self.values[-1][0]

    def __call__(self, iteration: int) -> float:
        return next(sparsity for start, sparsity in reversed(self.values) if iteration >= start)


@dataclass(frozen=True)
class DenseEnd:
    """Follow a sparsity, or a schedule of it, until iteration `begin`, and set nothing to zero from there on.

    The network that results is dense: `torchswat.prune_` finds nothing to prune in it.

    Parameters
    ----------
    before : float or schedule
        Sparsity in [0, 1), or a callable from iteration to sparsity.
    begin : int
        The first dense iteration.

    Raises
    ------
    InvalidValue
        For a sparsity outside [0, 1), or a negative iteration.

    References
    ----------
    Fine-tuning dense after sparse training: Han et al. 2017, *DSD: Dense-Sparse-Dense Training for Deep Neural
    Networks*, arXiv:1607.04381. Beyond the paper of SWAT.

    Examples
    --------
    >>> schedule = DenseEnd(Cubic(final=0.8, steps=100), begin=600)
    >>> [round(schedule(i), 2) for i in (50, 599, 600)]
    [0.7, 0.8, 0.0]
    """

    before: float | Callable[[int], float]
    begin: int

    def __post_init__(self) -> None:
        if not callable(self.before):
            check_sparsity(self.before, "before")
        if self.begin < 0:
            raise InvalidValue(f"begin = {self.begin}; allowed is begin >= 0.")

    @property
    def last(self) -> int:
        """The iteration from which on the sparsity is constant."""
        return self.begin

    def __call__(self, iteration: int) -> float:
        if iteration >= self.begin:
            return 0.0
        return self.before(iteration) if callable(self.before) else self.before
