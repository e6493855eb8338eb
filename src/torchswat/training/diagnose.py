"""Where a number stopped being finite: the first layer to blame, found by repeating the step with hooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchswat.errors import NotFinite
from torchswat.training.evaluate import autocast_to

_NOTHING = "nothing when the step was repeated (so it cannot be repeated exactly), but the step before it"


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether all entries of all tensors are finite (or so large that their norm is not)."""
    return not tensors or bool(torch.isfinite(torch.nn.utils.get_total_norm(tensors)))


def first_not_finite(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    precision: str = "float32",
) -> str:
    """Say where the first NaN or infinity of a training step arises.

    The step is repeated with every layer watched, in the order in which data flows: images, parameters,
    outputs of the layers, loss, then gradients from the last layer to the first. Batch-norm statistics and
    gradients of `model` are changed by it.

    Parameters
    ----------
    model : nn.Module
        In training mode, with the parameters it had before the step.
    images, labels : Tensor
        The batch of the step.
    loss_function : callable
        ``loss_function(outputs, labels)`` gives the loss.
    precision : {"float32", "bfloat16"}
        Of the step.

    Returns
    -------
    str
        To be followed by "is not finite", for instance ``the output of layer1.0.conv1``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> _ = nn.init.constant_(model[0].bias, float("inf"))
    >>> first_not_finite(model, torch.ones(1, 2), torch.tensor([0]), nn.functional.cross_entropy)
    'the parameter 0.bias'
    """
    if not torch.isfinite(images).all():
        return "the images of the batch"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name}"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_watch(name, found))
        for name, module in model.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        model.zero_grad(set_to_none=True)
        with autocast_to(precision, images.device):
            outputs = model(images).float()
        loss = loss_function(outputs, labels)
        if not found and not torch.isfinite(loss):
            found.append("the loss")
        if not found:
            loss.backward()
    except NotFinite as error:  # a sparse layer refuses to select among NaN, and names itself
        found.append(str(error))
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in model.named_parameters():
        if not found and parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            found.append(f"the gradient of {name}")
    if not found:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append(_NOTHING if is_finite(gradients) else "the norm of all gradients, which overflows,")
    return found[0]


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that notes a layer's output, and later its gradient, where it is not finite."""

    def note_gradient(gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            found.append(f"the gradient of the output of {name}")

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.isfinite(output).all():
            found.append(f"the output of {name}")
        elif output.requires_grad:
            output.register_hook(note_gradient)

    return hook
