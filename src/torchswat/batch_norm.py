"""Batch norm and the ReLU that follows it as one module that saves less for backward."""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchswat.engine.batch_norm import (
    NORM_INPUTS,
    BatchNorm,
    RecomputeInfo,
    factors_for,
    is_compiled,
    kept_as,
    runs_eagerly,
)
from torchswat.errors import UnknownName


def check_norm_input(name: str) -> None:
    """Raise `UnknownName` unless batch norm's input can be saved like that."""
    if name not in NORM_INPUTS:
        raise UnknownName.of("norm_input", name, NORM_INPUTS)


def fuses(norm: nn.BatchNorm2d, input: Tensor) -> bool:
    """Return whether `normalised` does what `norm` does with `input`: normalise by the batch's statistics."""
    if not norm.training or not norm.track_running_stats or not runs_eagerly(input):
        return False
    if (
        (torch.is_autocast_enabled(input.device.type) and input.dtype is not torch.bfloat16)
        or norm.momentum is None
        or input.dim() != 4
        or not input.is_floating_point()
    ):
        return False
    channels = input.shape[1]
    given = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if any(tensor is not None and tensor.shape != (channels,) for tensor in given):
        return False
    return input.numel() > channels  # torch refuses one value a channel


def normalised(
    norm: nn.BatchNorm2d, input: Tensor, residual: Tensor | None, relu: bool, norm_input: str
) -> Tensor:
    """Return ``norm(input)``, plus `residual`, rectified if `relu`, as one autograd node."""
    return recomputable(norm, input, residual, relu, norm_input)[0]


def recomputable(
    norm: nn.BatchNorm2d, input: Tensor, residual: Tensor | None, relu: bool, norm_input: str
) -> tuple[Tensor, RecomputeInfo | None]:
    """Return what `normalised` does, and what a layer that reads it can recompute it from, if anything."""
    norm._check_input_dim(input)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight, bias, mean, variance = norm.weight, norm.bias, norm.running_mean, norm.running_var
    norm_input = kept_as(norm_input, input)
    compiled = is_compiled(input, residual, weight, bias, mean, variance)
    scale, shift = (compiled and factors_for(input, relu, residual, norm_input)) or (None, None)
    statistics = weight, bias, mean, variance, norm.eps, norm.momentum
    output: Any = BatchNorm.apply(input, residual, *statistics, relu, norm_input, compiled, scale, shift)
    if scale is None or shift is None or not output.requires_grad:
        return output, None
    return output, RecomputeInfo(input.detach(), scale, shift)


class BatchNormReLU2d(nn.BatchNorm2d):
    """Compute ``relu(batch_norm(input))``, or ``relu(batch_norm(input) + residual)``, as one operation.

    `torch.nn.BatchNorm2d` saves its input for backward and `torch.nn.ReLU` its output. This module saves the
    input, whole or narrower, and one bit an entry. Outputs are those of the separate modules, and so are
    gradients where the input is saved whole; parameters and buffers have the same names. `torchswat.fuse_`
    makes the same of a BatchNorm2d and a ReLU that follow each other; this module is for models that are
    written with it.

    Parameters
    ----------
    num_features : int
        Channels of the input.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of a batch in the running statistics; None for their plain mean.
    affine : bool, default True
        Whether there are a learnable weight and bias, of shape (num_features,).
    track_running_stats : bool, default True
        Whether mean and variance are tracked for evaluation.
    device : device or str, optional
        Of parameters and buffers.
    dtype : dtype, optional
        Of parameters and buffers.
    norm_input : {"whole", "bfloat16", "int8"}, default "whole"
        How the input is saved: as it is; its deviation from the channel's mean rounded to bfloat16 (2 bytes
        an entry, off by 1/512 of itself at most); or to 8 bits (1 byte an entry, off by 1/510 of the range
        of the channel). Only gradients see the rounding, never the output. An input of bfloat16 takes 2 bytes
        as it is, so ``"bfloat16"`` is ``"whole"`` there.

    Raises
    ------
    UnknownName
        For another `norm_input`.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 3.3, on what batch norm saves. Saving it in 8 bits
    is beyond the paper; compare Chen et al. 2021, *ActNN*, arXiv:2104.14129.

    Examples
    --------
    >>> fused, input = BatchNormReLU2d(8, norm_input="int8"), torch.randn(4, 8, 5, 5, requires_grad=True)
    >>> separate = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    >>> torch.equal(fused(input), separate(input))
    True
    >>> fused(input, residual=torch.ones(4, 8, 5, 5)).sum().backward()
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm_input: str = "whole",
    ) -> None:
        check_norm_input(norm_input)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.norm_input = norm_input

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised input, plus the residual, rectified.

        Parameters
        ----------
        input : Tensor of shape (N, C, H, W)
            Floating point.
        residual : Tensor of shape (N, C, H, W), optional
            Added before the ReLU, in the dtype of `input`.

        Returns
        -------
        Tensor of shape (N, C, H, W)
            In the dtype of `input`, non-negative.

        Examples
        --------
        >>> bool((BatchNormReLU2d(3)(torch.randn(2, 3, 4, 4)) >= 0).all())
        True
        """
        same = residual is None or (residual.shape == input.shape and residual.dtype == input.dtype)
        if same and fuses(self, input):
            return normalised(self, input, residual, True, self.norm_input)
        output = super().forward(input)
        return (output if residual is None else output + residual).relu()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm_input={self.norm_input!r}"
