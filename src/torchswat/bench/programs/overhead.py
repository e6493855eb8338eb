"""What is paid beside kernels: by a layer with next to nothing to compute, and by a whole step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchswat
from torchswat.bench.programs.kinds import (
    NO_OPTIONS,
    SPARSITY,
    Contestants,
    dense_models,
    sparse_models,
    training_step,
)
from torchswat.errors import InvalidValue

TINY = "tiny "
"""What the names of the contestants begin with that have next to nothing to compute."""


@dataclass(frozen=True)
class SingleLayer:
    """Forward and backward pass of one small convolution or fully connected layer: what its overhead is."""

    is_cold: ClassVar[bool] = False
    is_long: ClassVar[bool] = False
    steps_a_run: ClassVar[int] = 1
    name: str
    build: Callable[[], nn.Conv2d | nn.Linear]
    batch: tuple[int, ...]
    asked: Mapping[str, float] = field(default_factory=dict)

    def contestants(self) -> Contestants:
        """Return torch's function, the layer that calls it, the sparse layer, and a no-op in their place."""
        dense = self.build()
        (sparse,) = torchswat.sparsify_(nn.Sequential(copy.deepcopy(dense)), sparsity=SPARSITY)
        function, name = (F.conv2d, "conv2d") if isinstance(dense, nn.Conv2d) else (F.linear, "linear")
        x = torch.randn(self.batch, requires_grad=True)
        gradient = torch.randn_like(dense(x))

        def both_passes(call: Callable[[Tensor], Tensor], layer: nn.Module) -> Callable[[], object]:
            wanted = x, *layer.parameters()
            return lambda: torch.autograd.grad(call(x), wanted, gradient)

        weight, bias = dense.parameters()
        return {
            f"dense F.{name}": both_passes(lambda x: function(x, weight, bias), dense),
            f"dense nn.{type(dense).__name__}": both_passes(dense, dense),
            "sparse": both_passes(sparse, sparse),
            "no-op Function": both_passes(lambda x: _NoOp.apply(x, weight, bias, gradient), dense),
        }


class _NoOp(torch.autograd.Function):
    """Allocates the output and the three gradients, which is the least that a layer written in Python costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, like: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(like)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *map(torch.empty_like, ctx.saved_tensors), None


@dataclass(frozen=True)
class StepOverhead:
    """A training step, and the same step with next to nothing to compute.

    The tiny network has the same layers with an eighth of the channels, and its images a quarter of the height and
    width. Its step makes the same calls in the same order: of Python, of autograd, of torch's operations and of the
    compiled kernels, whose choice is carried over from the full network by the tuned plan. So its time over that of
    the full step is the share that is outside kernels, dense and sparse alike. No profiler runs.

    It is uncertain both ways. Too large: a thousandth of the multiply-adds and a hundredth of the entries are still
    computed, and what a kernel does before its first entry counts as overhead. Too small: in the full step, kernels
    push the interpreter's data out of the caches, and torch maps memory for large tensors. Expect some per cent of
    the step, and compare sparse with dense rather than either with zero.

    Attributes
    ----------
    name : str
        Of the program.
    build : callable
        Returns the network: ``build(width=...)`` that with so many channels in its first stage.
    width : int
        Of the full network, a multiple of 8.
    batch : tuple of int
        Shape of the images, (N, C, H, W); height and width are multiples of 4.
    """

    is_cold: ClassVar[bool] = False
    is_long: ClassVar[bool] = False
    steps_a_run: ClassVar[int] = 1
    name: str
    build: Callable[..., nn.Module]
    width: int
    batch: tuple[int, int, int, int]
    asked: Mapping[str, float] = field(default_factory=dict)

    def contestants(self) -> Contestants:
        """Return what `TrainingStep` does, and the same of the tiny network.

        Raises
        ------
        InvalidValue
            Where the tiny network's products do not run as those of the full one, as with ``TORCHSWAT_PLAN=model``.
        """
        from torchswat import switched

        switched._FEW_ENTRIES = 0  # the tiny network's ReLUs are to do what those of the full one do
        full, tiny = self.build(width=self.width), self.build(width=self.width // _CHANNELS)
        n, c, h, w = self.batch
        images, tiny_images = torch.randn(self.batch), torch.randn(n, c, h // _SIDE, w // _SIDE)
        classes = torch.randint(10, (n,))
        _choose_alike(training_step(sparse_models(full, NO_OPTIONS)["sparse"], images, classes))
        return {**_steps("", full, images, classes), **_steps(TINY, tiny, tiny_images, classes)}


_CHANNELS, _SIDE = 8, 4
"""What the tiny network's channels, and the sides of its images, are fewer by."""


def _steps(prefix: str, model: nn.Module, images: Tensor, classes: Tensor) -> Contestants:
    steps: Contestants = {}
    for name, (dense, laid_out) in dense_models(model, images).items():
        steps[f"{prefix}dense {name}"] = training_step(dense, laid_out, classes)
    for name, sparse in sparse_models(model, NO_OPTIONS).items():
        steps[f"{prefix}{name}"] = training_step(sparse, images, classes)
    return steps


def _choose_alike(step: Callable[[], object]) -> None:
    """Let the products of the tiny network run sparse where those of the full one do, which `step` runs."""
    from torchswat.engine import plan
    from torchswat.engine.timings import Timing

    asked: dict[tuple[Any, float], Any] = {}
    with plan.recorded(lambda shape, sparsity: asked.setdefault((shape, sparsity), tiny_shape(shape))):
        step()
    pairs = {True: (1.0, 2.0), False: (2.0, 1.0)}  # milliseconds, sparse and dense
    timings = {}
    for (shape, sparsity), tiny in asked.items():
        choice = plan.choose(shape, sparsity)
        chosen = choice.forward, choice.grad_input, choice.grad_weight
        timings[plan.key_of(tiny, sparsity)] = Timing(*(pairs[is_sparse] for is_sparse in chosen))
    plan.PLAN.learn(timings)
    for (shape, sparsity), tiny in asked.items():
        if plan.choose(tiny, sparsity) != plan.choose(shape, sparsity):
            raise InvalidValue(
                f"the products of {tiny} do not run as those of {shape}: leave TORCHSWAT_PLAN unset for this program."
            )


def tiny_shape(shape: Any) -> Any:
    """Return the shape that a layer of the tiny network has, from that in the full one.

    Examples
    --------
    >>> from torchswat.engine.shape import Shape
    >>> print(tiny_shape(Shape((16, 3, 32, 32), (16, 3, 3, 3), (1, 1), (1, 1))))
    16x3x8x8-2x3x3-s11-p11
    """
    (n, c, h, w), (k, of_k, r, s) = shape.input, shape.weight

    def fewer(channels: int) -> int:  # those of images and classes stay
        return channels if channels % _CHANNELS else channels // _CHANNELS

    sides = (h, w) if (h, w) == (1, 1) else (h // _SIDE, w // _SIDE)
    return replace(shape, input=(n, fewer(c), *sides), weight=(fewer(k), fewer(of_k), r, s))
