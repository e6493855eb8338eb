"""Training steps under `torch.compile`: dense by Inductor, sparse by this package's backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from torchswat.bench.programs.kinds import (
    NO_OPTIONS,
    Contestants,
    dense_models,
    sparse_models,
    training_step,
)
from torchswat.errors import MissingDependency

_FIRST_STEPS = 3
"""That compile, and compile once more where a size or a state turned out to change."""


@dataclass(frozen=True)
class CompiledStep:
    """A training step, eager and compiled. What compiling takes is not in its time."""

    is_cold: ClassVar[bool] = False
    is_long: ClassVar[bool] = True
    steps_a_run: ClassVar[int] = 1
    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]
    asked: Mapping[str, float] = field(default_factory=dict)

    def contestants(self) -> Contestants:
        """Return dense steps in both layouts, the same compiled by Inductor, fused ones, and compiled sparse ones.

        Raises
        ------
        MissingDependency
            Where Inductor compiles nothing, such as without a C++ compiler.
        """
        check_inductor()
        from torchswat.backend import torchswat as backend  # an old version without it says so

        model, images = self.build(), torch.randn(self.batch)
        classes = torch.randint(10, self.batch[:1])
        steps: Contestants = {}
        for name, (dense, laid_out) in dense_models(model, images).items():
            steps[f"dense {name}"] = training_step(dense, laid_out, classes)
            compiled = _compiled(copy.deepcopy(dense), "inductor")
            steps[f"compiled dense {name}"] = training_step(compiled, laid_out, classes)
        sparse = sparse_models(model, NO_OPTIONS)
        steps["compiled sparse"] = training_step(
            _compiled(copy.deepcopy(sparse["sparse"]), backend), images, classes
        )
        for name, eager in sparse.items():
            steps[name] = training_step(eager, images, classes)
        for name, step in steps.items():
            if name.startswith("compiled"):
                for _ in range(_FIRST_STEPS):
                    step()
        return steps


def check_inductor() -> None:
    """Raise `MissingDependency` where `torch.compile` with Inductor does not work, with torch's reason."""
    try:
        torch.compile(lambda x: x + 1, backend="inductor")(torch.ones(2))
    except Exception as error:  # of Dynamo, Inductor, or the compiler: there is no class for all
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise MissingDependency(
            f"torch.compile with Inductor does not work here ({reason}): it needs a C++ compiler."
        ) from error


def _compiled(model: nn.Module, backend: str | Callable) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]
