"""A network for CIFAR-10 that trains in eight epochs (Jordan 2024, arXiv:2404.00498, section 3).

A fixed convolution whitens the patches of the images, three groups of two convolutions follow, and one linear
layer. Sizes, initial weights and the division of the scores are those of the publication's code for the optimizer
Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WHITENING_EPS = 5e-4
"""Added to the eigenvalues of the patches' second moments, so that directions without signal stay small."""


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, each with batch norm and GELU; the first is followed by a maximum of 2x2.

    A `deep` group has a third one, and what enters the second is added to the batch norm of the third.
    """

    def __init__(self, inputs: int, outputs: int, deep: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _shift_only_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _shift_only_norm(outputs)
        self.activation = nn.GELU()
        self.is_deep = deep
        if deep:
            self.conv3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
            self.norm3 = _shift_only_norm(outputs)
        for convolution in (self.conv1, self.conv2, *([self.conv3] if deep else [])):
            # The first filters hand their input on; where there are more outputs, the rest is torch's own.
            nn.init.dirac_(convolution.weight[: convolution.in_channels].detach())

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        second = self.activation(self.norm2(self.conv2(x)))
        return self.activation(self.norm3(self.conv3(second)) + x) if self.is_deep else second


class Airbench(nn.Module):
    """The whitened network of three groups.

    Parameters
    ----------
    width : int
        Channels of the first group; the two others have four times as many. The publication's is 64.
    num_classes, in_channels : int
        Number of outputs and of the images' channels.
    deep : bool
        Whether the groups have three convolutions, as in the publication's larger network (airbench96).

    References
    ----------
    Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498, sections 3.1 to 3.3.

    Examples
    --------
    >>> model = Airbench(width=8)
    >>> model.initialise_from_(torch.randn(100, 3, 32, 32))
    >>> model(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self, *, width: int = 64, num_classes: int = 10, in_channels: int = 3, deep: bool = False
    ) -> None:
        super().__init__()
        whitened = 2 * in_channels * 2**2  # every direction of a 2x2 patch, and its negative
        self.whiten = nn.Conv2d(in_channels, whitened, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.activation = nn.GELU()
        self.group1 = ConvGroup(whitened, width, deep)
        self.group2 = ConvGroup(width, 4 * width, deep)
        self.group3 = ConvGroup(4 * width, 4 * width, deep)
        self.pool = nn.AdaptiveMaxPool2d(1)  # images of 32 pixels arrive here as 3x3
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * width, num_classes, bias=False)
        weight = self.head.weight.detach()
        weight /= weight.std()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.whiten(x))
        x = self.group3(self.group2(self.group1(x)))
        return self.head(self.flatten(self.pool(x))) / self.head.in_features

    @torch.no_grad()
    def initialise_from_(self, images: Tensor) -> None:
        """Make the first convolution whiten the patches of `images`, in place.

        Its filters are the eigenvectors of the second moments of all 2x2 patches, each divided by the root of
        its eigenvalue, and their negatives: their outputs have the identity as second moments. They are not
        trained, and are part of the state_dict.

        Parameters
        ----------
        images : Tensor of shape (N, in_channels, H, W), float
            Normalised training images, of at least 2x2 pixels; a few thousand suffice.
        """
        filters = self.whiten.weight
        patches = (
            nn.functional.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
        )  # (P, in_channels * 4)
        variances, directions = torch.linalg.eigh(
            patches.T @ patches / len(patches)
        )  # eigenvectors are columns
        whitening = directions.T / (variances[:, None] + WHITENING_EPS).sqrt()
        filters.copy_(torch.cat([whitening, -whitening]).view_as(filters))


def _shift_only_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose weights stay 1, and whose statistics follow the last few batches."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
