"""Loss and accuracy of a network on images it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from torchswat.training.views import Views, average_scores


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_function: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    device: torch.device | str = "cpu",
    views: Views = "plain",
    precision: str = "float32",
) -> Tensor:
    """Run a network in evaluation mode, in which sparse layers use their sparse weights.

    The random numbers that it draws (masks of the algorithm ``random``) are given back afterwards: training
    goes on as if there had been no evaluation, whatever each process's share of the images was. The scores are
    averaged over `views` of the images, see `torchswat.training.views`.

    With `precision` ``"bfloat16"`` it runs under autocast; the loss is computed in float32 in any case.

    Returns
    -------
    Tensor
        Float64 of shape (3,): summed loss, number of correct images, number of images. Sums rather than
        means, so that several processes can add theirs up.

    Examples
    --------
    >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
    >>> evaluate(nn.Identity(), batches)[1:].tolist()
    [3.0, 4.0]
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            with autocast_to(precision, device):
                outputs = average_scores(model, images, views).float()
            sums += batch_sums(loss_function(outputs, labels), outputs, labels)
    model.train(was_training)
    return sums


def autocast_to(precision: str, device: torch.device | str) -> torch.autocast:
    """The context of a pass in ``"float32"``, which changes nothing, or in ``"bfloat16"``."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def batch_sums(loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
    """Summed loss, correct images and images of a batch: float64 of shape (3,), on the CPU.

    `loss` is the mean over the batch, `outputs` are its scores (N, classes), `labels` its classes (N,).

    Examples
    --------
    >>> batch_sums(torch.tensor(0.5), torch.eye(2), torch.tensor([0, 0])).tolist()
    [1.0, 1.0, 2.0]
    """
    correct = (outputs.detach().argmax(dim=1) == labels).sum().double()
    count = correct.new_tensor(len(labels))
    return torch.stack([loss.detach().double() * count, correct, count]).cpu()


def means(sums: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy in per cent from the sums of `evaluate`."""
    loss_sum, correct, count = sums.tolist()
    return loss_sum / count, 100 * correct / count
