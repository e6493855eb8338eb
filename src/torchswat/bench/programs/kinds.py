"""The kinds of programs that are timed: a training step, a series of new sizes.

A kind builds its contestants: functions without arguments, each of which runs once. The names of those that
the speed is compared with begin with ``dense``. Of the package this module uses only what its users use, so
that it also runs with another version of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchswat

SPARSITY = 0.8
_OTHER_BATCH = 32, 1, 15, 15  # none of the sizes that are timed
NO_OPTIONS: Mapping[str, Any] = {}

Contestants = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class TrainingStep:
    """A training step of a classifier on one batch of random images.

    Attributes
    ----------
    name : str
        Of the program.
    build : callable
        Returns the model.
    batch : tuple of int
        Shape of the images, (N, C, H, W).
    asked : mapping
        The least speeds asked, by what they are over: ``dense``, ``float32``, ``against`` and
        ``against unfused``.
    options : mapping
        Arguments of `torchswat.sparsify_` beside the sparsity.
    autocast : bool
        Whether all contestants run under bfloat16 autocast. Sparse float32 ones then stand beside them.
    is_long : bool
        Whether a step takes so long that a quick run leaves it out.
    """

    is_cold: ClassVar[bool] = False
    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]
    asked: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    autocast: bool = False
    is_long: bool = False

    @property
    def steps_a_run(self) -> int:
        """Return how many steps belong together: a period of the selection."""
        return self.options.get("period", 1)

    def contestants(self) -> Contestants:
        """Return dense steps in both layouts, a sparse one, and a fused one where something fuses."""
        model, images = self.build(), torch.randn(self.batch)
        classes = torch.randint(10, self.batch[:1])
        steps: Contestants = {}
        for name, (dense, laid_out) in dense_models(model, images).items():
            steps[f"dense {name}"] = training_step(dense, laid_out, classes, self.autocast)
        for autocast in (True, False) if self.autocast else (False,):
            suffix = " float32" if self.autocast and not autocast else ""
            for name, sparse in sparse_models(model, self.options).items():
                steps[name + suffix] = training_step(sparse, images, classes, autocast)
        return steps


@dataclass(frozen=True)
class NewSizes:
    """Steps on batches of ever new sizes, in a new process that has measured nothing yet."""

    is_cold: ClassVar[bool] = True
    is_long: ClassVar[bool] = True
    steps_a_run: ClassVar[int] = 1
    name: str
    build: Callable[[], nn.Module]
    batches: tuple[tuple[int, int, int, int], ...]
    training: bool
    asked: Mapping[str, float] = field(default_factory=dict)

    @property
    def batch(self) -> tuple[int, int, int, int]:
        """Return the largest of the batches."""
        return self.batches[-1]

    def contestants(self) -> Contestants:
        """Return what `TrainingStep` does, each over all sizes."""
        model, inputs = self.build(), [torch.randn(batch) for batch in self.batches]
        _series(copy.deepcopy(model), [torch.randn(_OTHER_BATCH)], training=True)()  # torch's own first time
        runs: Contestants = {}
        for name, (dense, *laid_out) in dense_models(model, *inputs).items():
            runs[f"dense {name}"] = _series(dense, laid_out, self.training)
        for name, sparse in sparse_models(model, NO_OPTIONS).items():
            runs[name] = _series(sparse, inputs, self.training)
        return runs


def dense_models(model: nn.Module, *inputs: Tensor) -> dict[str, tuple[Any, ...]]:
    """Return copies of `model` in both layouts of torch, each with copies of the `inputs` in the same."""
    return {
        name: (
            copy.deepcopy(model).to(memory_format=layout),  # type: ignore[call-overload]
            *(x.contiguous(memory_format=layout) for x in inputs),
        )
        for name, layout in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last))
    }


def sparse_models(model: nn.Module, options: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return sparse copies of `model`: as `sparsify_` leaves it, and fused where `fuse_` fuses something."""
    models = {"sparse": torchswat.sparsify_(copy.deepcopy(model), sparsity=SPARSITY, **options)}
    fuse_ = getattr(torchswat, "fuse_", None)
    if fuse_ is not None:
        fused = copy.deepcopy(models["sparse"])
        fuse_(fused)
        if _classes(fused) != _classes(models["sparse"]):
            models["fused"] = fused
    return models


def _classes(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


def training_step(
    model: nn.Module, images: Tensor, classes: Tensor, autocast: bool = False
) -> Callable[[], object]:
    """Return a function that does a training step of `model`: loss, gradients, SGD with momentum."""
    return partial(_Training(model, autocast).step, images, classes)


class _Training:
    """A model with its optimizer, SGD with momentum, that does whole training steps."""

    def __init__(self, model: nn.Module, autocast: bool = False) -> None:
        self.model, self.autocast = model.train(), autocast
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(self, images: Tensor, classes: Tensor) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            loss = F.cross_entropy(_scores(self.model(images)), classes)
        loss.backward()
        self.optimizer.step()


def _series(model: nn.Module, inputs: list[Tensor], training: bool) -> Callable[[], object]:
    """Return a function that does a training step, or an evaluation, on each of the `inputs`."""
    trained, classes = _Training(model), [torch.randint(10, images.shape[:1]) for images in inputs]
    model.train(training)

    def train() -> None:
        for images, of_images in zip(inputs, classes, strict=True):
            trained.step(images, of_images)

    @torch.no_grad()
    def evaluate() -> None:
        for images in inputs:
            model(images)

    return train if training else evaluate


def _scores(output: Any) -> Tensor:
    """Return the class scores: what a plain model returns, or what Hugging Face calls logits."""
    return getattr(output, "logits", output)
