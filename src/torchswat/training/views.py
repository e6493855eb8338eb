"""Test-time augmentation: the scores of an image as a weighted average over several views of it.

As the fast CIFAR recipes evaluate: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498,
the section "Multi-crop evaluation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchswat.data import Dataset
from torchswat.errors import InvalidValue, UnknownName
from torchswat.training.recipe import Recipe

Views = Literal["plain", "mirror", "mirror+shift"]


def average_scores(model: Callable[[Tensor], Tensor], images: Tensor, views: Views = "plain") -> Tensor:
    """Average a network's scores over the views of each image.

    Parameters
    ----------
    model : callable
        From images to scores, before any softmax, of shape (N, classes). It is called once for each view.
    images : Tensor of float, shape (N, C, H, W)
    views : {"plain", "mirror", "mirror+shift"}, default "plain"
        See `weighted_views`.

    Returns
    -------
    Tensor of shape (N, classes)
        Of the dtype of the model's scores; averages of narrower scores are float32.

    Examples
    --------
    >>> import torch
    >>> corner = lambda images: images[:, :, 0, 0]
    >>> average_scores(corner, torch.tensor([[[[1.0, 3.0]]]]), "mirror")
    tensor([[2.]])
    """
    if views == "plain":
        return model(images)
    scored = [(weight, model(view)) for weight, view in weighted_views(images, views)]
    dtype = torch.promote_types(
        scored[0][1].dtype, torch.float32
    )  # bfloat16 would round away small differences
    first, *others = [weight * scores.to(dtype) for weight, scores in scored]
    return sum(others, start=first)


def weighted_views(images: Tensor, views: Views) -> Iterator[tuple[float, Tensor]]:
    """Yield the views of images, each with its weight; the weights add up to one.

    - ``plain``: the images as they are.
    - ``mirror``: the images and their mirror images, left and right exchanged, weighted alike.
    - ``mirror+shift``: these two with half of the weight, and with the other half the same two of the images moved
      by one pixel, once up and to the left, once down and to the right. A reflected border comes in from outside.

    Parameters
    ----------
    images : Tensor of float, shape (N, C, H, W)
        For shifts, H and W are 2 or more.

    Yields
    ------
    float, Tensor of the shape of `images`

    Examples
    --------
    >>> import torch
    >>> [(weight, view.tolist()) for weight, view in weighted_views(torch.tensor([[[[1, 2]]]]), "mirror")]
    [(0.5, [[[[1, 2]]]]), (0.5, [[[[2, 1]]]])]
    """
    if views == "plain":
        yield 1.0, images
        return
    moved = [(1.0, images)]
    if views == "mirror+shift":
        padded = pad(images, (1, 1, 1, 1), mode="reflect")
        moved = [(0.5, images), (0.25, padded[..., 2:, 2:]), (0.25, padded[..., :-2, :-2])]
    for weight, view in moved:
        yield weight / 2, view
        yield weight / 2, view.flip(3)


def known_views(name: str) -> Views:
    """Return `name` where it names views; raise UnknownName elsewhere."""
    if name not in get_args(Views):
        raise UnknownName.of("views", name, get_args(Views))
    return cast(Views, name)


def check_views(views: Views, recipe: Recipe, dataset: Dataset) -> None:
    """Raise InvalidValue where views mirror images that are not mirrored in training either, such as digits."""
    if views != "plain" and (recipe.data.flip or dataset.augmentation.flip) == "none":
        raise InvalidValue(
            f"views is {views!r}: it mirrors images, and the training does not mirror those of {dataset.name}. "
            "Take 'plain'; or train with data.flip=random where a mirrored image means the same."
        )
