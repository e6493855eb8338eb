"""An exponential average of a network's weights, evaluated beside the weights themselves."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A copy of a network whose weights, and statistics of batch norm, are averages over the steps.

    After step ``t``, ``average = d * average + (1 - d) * weight`` with ``d = min(decay, (t + 1) / (t + 10))``: the
    first steps, of which the network soon knows better, do not count for long. What is no floating-point number,
    such as the state of sparse layers, is copied.

    `torch.optim.swa_utils.AveragedModel` would average such integers as well, or no statistics at all.

    Parameters
    ----------
    model : nn.Module
        Is copied.
    decay : float
        In (0, 1).

    Attributes
    ----------
    model : nn.Module
        The averaged network.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> average = AveragedWeights(layer, decay=0.5)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(average.model.weight + 1)
    >>> average.update(layer, step=100)
    >>> round((layer.weight - average.model.weight).item(), 4)
    0.5
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights of `model` into the average after optimizer step `step`, counted from 1."""
        share = 1 - min(self.decay, (step + 1) / (step + 10))
        for mine, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, share)
            else:
                mine.copy_(theirs)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, those that are no part of the state_dict among them."""
    return itertools.chain(model.parameters(), model.buffers())
