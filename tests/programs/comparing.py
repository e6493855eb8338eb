"""A network with SWAT beside the same network emulated: what both give, and that it agrees."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from emulation import emulate_
from torch import Tensor, nn

import torchswat

SPARSITY = 0.8
STEPS = 10


@dataclass(frozen=True)
class Setting:
    """How the package runs: which engine, which plan, fused or not, and in which precision."""

    engine: str
    plan: str
    fused: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return "-".join([self.engine, self.plan, precision, *["fused"] * self.fused])

    @property
    def tolerance(self) -> float:
        """Return the largest error of a tensor that is allowed, in the Euclidean norm, beside the tensor.

        In float32 a rounding moves a few activations across the threshold.
        """
        return 1e-9 if self.dtype == torch.float64 else 1e-2


def settings() -> Iterator[Setting]:
    """Yield every way to run: float64 is exact, and the compiled engine takes float32 alone."""
    for fused in (False, True) if hasattr(torchswat, "fuse_") else (False,):
        yield Setting("reference", "sparse", fused, torch.float64)
        yield Setting("reference", "sparse", fused, torch.float32)
        yield Setting("native", "sparse", fused, torch.float32)
        yield Setting("native", "tuned", fused, torch.float32)


def sparse_copy(model: nn.Module, setting: Setting, **options: Any) -> nn.Module:
    """Return a copy of `model` with SWAT, as `setting` says."""
    sparse = torchswat.sparsify_(copy.deepcopy(model), sparsity=SPARSITY, **options)
    if setting.fused:
        torchswat.fuse_(sparse)  # type: ignore[attr-defined]
    return sparse


def check_alike(
    actual: Tensor, expected: Tensor, tolerance: float, name: str = "a tensor", least: float = 0.0
) -> None:
    """Complain unless the error is small, in the norm, beside what is expected or beside `least`."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
    error = float((actual.detach() - expected.detach()).double().norm())
    scale = float(expected.detach().double().norm())
    assert error <= tolerance * max(scale, least), f"{name}: error {error:.3g} beside {scale:.3g}"


def scores_of(output: Any) -> Tensor:
    """Return the scores of a plain network or of one of Hugging Face."""
    return getattr(output, "logits", output)


def one_pass(model: nn.Module, x: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return output, loss and all gradients by name."""
    x = x.detach().clone().requires_grad_()
    output = scores_of(model(x))
    loss = F.cross_entropy(output, classes)
    loss.backward()
    assert x.grad is not None
    found = {"output": output.detach(), "loss": loss.detach(), "grad of the input": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad of {name}"] = parameter.grad.clone()
    model.zero_grad()
    return found


def check_steps(sparse: nn.Module, emulated: nn.Module, x: Tensor, classes: Tensor, setting: Setting) -> None:
    """Complain unless the losses of ten optimizer steps agree.

    In float64 both train by themselves. In float32 a rounding grows tenfold from step to step in some
    networks, emulated ones included, so each step starts from the weights of the emulation.
    """
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (sparse, emulated)]
    for step in range(STEPS):
        actual, expected = (
            train_step(model, optimizer, x, classes)
            for model, optimizer in zip((sparse, emulated), optimizers, strict=True)
        )
        tolerance = 1e-7 if setting.dtype == torch.float64 else 1e-3
        check_alike(actual, expected, tolerance, f"the loss of step {step}")
        if setting.dtype == torch.float32:
            with torch.no_grad():
                for mine, theirs in zip(sparse.parameters(), emulated.parameters(), strict=True):
                    mine.copy_(theirs)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, classes: Tensor) -> Tensor:
    """Return the loss before one step."""
    optimizer.zero_grad()
    loss = F.cross_entropy(scores_of(model(x)), classes)
    loss.backward()
    optimizer.step()
    return loss.detach()


def check_network(
    build: Callable[[], nn.Module],
    batch: tuple[int, ...],
    setting: Setting,
    block: tuple[int, int] | None = None,
) -> None:
    """Complain unless outputs, gradients, losses of ten steps and buffers are those of the emulation."""
    torch.manual_seed(0)
    model = build().to(setting.dtype).train()
    x, classes = torch.randn(batch, dtype=setting.dtype), torch.randint(10, batch[:1])
    options = {} if block is None else {"block": block}
    sparse, emulated = sparse_copy(model, setting, **options), emulate_(copy.deepcopy(model), SPARSITY, block)
    actual, expected = one_pass(sparse, x, classes), one_pass(emulated, x, classes)
    assert actual.keys() == expected.keys()
    # a bias before a batch norm has no gradient but rounding
    least = 1e-4 * max(float(tensor.norm()) for tensor in expected.values())
    for name, tensor in expected.items():
        check_alike(actual[name], tensor, setting.tolerance, name, least)
    check_steps(sparse, emulated, x, classes, setting)
    assert sparse.state_dict().keys() == model.state_dict().keys()
    buffers = {name: b for name, b in emulated.named_buffers() if b.is_floating_point()}
    least = 1e-4 * max((float(tensor.norm()) for tensor in buffers.values()), default=0.0)
    for name, tensor in buffers.items():
        check_alike(sparse.get_buffer(name), tensor, 5 * setting.tolerance, name, least)
