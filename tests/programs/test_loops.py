"""Training loops as users write them, against the same loops over the emulation."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from comparing import SPARSITY, Setting, check_alike, sparse_copy
from emulation import emulate_
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint_sequential

Found = dict[str, Tensor]
"""What a loop gives, by name."""


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def batches(model: nn.Module, count: int) -> list[tuple[Tensor, Tensor]]:
    dtype, draw = next(model.parameters()).dtype, torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 3, 10, 10, dtype=dtype, generator=draw),
            torch.randint(10, (8,), generator=draw),
        )
        for _ in range(count)
    ]


def sgd(model: nn.Module, rate: float = 0.01) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def parameters(model: nn.Module) -> Found:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def accumulation(model: nn.Module) -> Found:
    """Four micro-batches a step."""
    optimizer = sgd(model)
    for index, (x, classes) in enumerate(batches(model, 8)):
        (F.cross_entropy(model(x), classes) / 4).backward()
        if index % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return parameters(model)


def moving_average(model: nn.Module) -> Found:
    """The average answers in evaluation, after its own statistics were taken."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = sgd(model)
    for x, classes in batches(model, 4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        optimizer.step()
        average.update_parameters(model)
    update_bn([x for x, _ in batches(model, 2)], average)
    average.eval()
    with torch.no_grad():
        return {"the average's output": average(batches(model, 1)[0][0]), **parameters(average)}


def averaged_buffers(model: nn.Module) -> Found:
    average = AveragedModel(model, use_buffers=True)
    optimizer = sgd(model)
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        optimizer.step()
        average.update_parameters(model)
    with torch.no_grad():
        return {"the average's output": average.eval()(batches(model, 1)[0][0])}


def lbfgs(model: nn.Module) -> Found:
    """One closure, called as often as the optimizer likes."""
    (x, classes), *_ = batches(model, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), classes)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).detach() for _ in range(2)]
    return {"the losses": torch.stack(losses)}


def sharpness_aware(model: nn.Module) -> Found:
    """Two passes a step: the second at weights moved along the gradient of the first."""
    optimizer = sgd(model)
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        moves = [0.05 * p.grad.sign() for p in model.parameters()]
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.add_(move)
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.sub_(move)
        optimizer.step()
    return parameters(model)


def checkpoints(model: nn.Module) -> Found:
    """Three segments, recomputed in the backward pass."""
    optimizer = sgd(model)
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        scores = checkpoint_sequential(model, 3, x.requires_grad_(), use_reentrant=False)
        F.cross_entropy(scores, classes).backward()
        optimizer.step()
    return parameters(model)


def functional(model: nn.Module) -> Found:
    """The weights come from outside, and the gradients go there."""
    weights = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    x, classes = batches(model, 1)[0]
    loss = F.cross_entropy(torch.func.functional_call(model, weights, (x,)), classes)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    assert all(p.grad is None for p in model.parameters())
    return dict(zip(weights, gradients, strict=True))


def frozen_beginning(model: nn.Module) -> Found:
    """Fine-tuning: the first layers take no gradient, and their norms stay in evaluation."""
    for layer in model[:3]:
        layer.requires_grad_(False).eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        optimizer.step()
    return parameters(model)


def clipped(model: nn.Module) -> Found:
    optimizer = sgd(model, 0.1)
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return parameters(model)


def two_losses(model: nn.Module) -> Found:
    """One graph that is kept for a second backward pass."""
    x, classes = batches(model, 1)[0]
    scores = model(x)
    F.cross_entropy(scores, classes).backward(retain_graph=True)
    scores.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def gradient_penalty(model: nn.Module) -> Found:
    """The gradient of the input, without one of the weights: an attack, or a saliency map."""
    x, classes = batches(model, 1)[0]
    x.requires_grad_()
    model.requires_grad_(False)
    (of_input,) = torch.autograd.grad(F.cross_entropy(model(x), classes), x)
    return {"the input's gradient": of_input}


def evaluated_between(model: nn.Module) -> Found:
    """An evaluation after each step, with and without autograd."""
    optimizer, outputs = sgd(model), []
    for x, classes in batches(model, 3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), classes).backward()
        optimizer.step()
        model.eval()
        with torch.inference_mode():
            outputs.append(model(x).clone())
        outputs.append(model(x).detach())
        model.train()
    return {"the outputs": torch.stack([output.clone() for output in outputs]), **parameters(model)}


LOOPS: dict[str, Callable[[nn.Module], Found]] = {
    loop.__name__: loop
    for loop in (
        accumulation,
        moving_average,
        averaged_buffers,
        lbfgs,
        sharpness_aware,
        checkpoints,
        functional,
        frozen_beginning,
        clipped,
        two_losses,
        gradient_penalty,
        evaluated_between,
    )
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_gives_what_the_emulation_gives(name: str, setting: Setting):
    if setting.fused and name in ("checkpoints", "frozen_beginning"):
        pytest.skip("the loop takes the layers one by one")
    model = network().to(setting.dtype)
    expected = LOOPS[name](emulate_(copy.deepcopy(model), SPARSITY))
    actual = LOOPS[name](sparse_copy(model, setting))
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        check_alike(actual[key], tensor, 1e-8 if setting.dtype == torch.float64 else 2e-2, key, least=1e-3)


@pytest.mark.parametrize("algorithm", ["swat", "meprop"])
def test_a_gradient_that_overflows_lets_the_scaler_skip_the_step(algorithm: str, setting: Setting):
    model = sparse_copy(network().to(setting.dtype), setting, algorithm=algorithm)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = copy.deepcopy(model.state_dict())
    (x, classes), *_ = batches(model, 1)
    largest = torch.finfo(setting.dtype).max
    # the gradient of the scores is finite, and its product with the scale is not
    (scaler.scale(model(x)) * (largest / 2**10)).sum().backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**19
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), classes)).backward()
    scaler.step(optimizer)
    assert not torch.equal(model[0].weight, before["0.weight"])
