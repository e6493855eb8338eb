"""How every network here starts: He-normal convolutions, as the publications say."""

from __future__ import annotations

from torch import nn


def he_normal_(model: nn.Module) -> None:
    """Initialise the layers of `model` in place.

    Convolutions are drawn from a normal distribution of mean 0 and standard deviation
    ``sqrt(2 / fan_out)`` (He et al. 2015, "Delving Deep into Rectifiers", section 2.2, equation 14), with
    zero biases. Batch norm starts as the identity on normalised values: weight 1, bias 0. Linear layers keep
    torch's own weights, uniform within ``1 / sqrt(fan_in)``, with zero biases: so does the code that the
    authors of ResNet, DenseNet and WRN released.

    Parameters
    ----------
    model : nn.Module
        Any module; layers of other kinds stay as they are. Parameters on the meta device are left alone.

    Examples
    --------
    >>> from torch import nn
    >>> convolution = nn.Conv2d(16, 50, 3)
    >>> he_normal_(convolution)
    >>> bool(convolution.bias.abs().max() == 0)
    True
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif not isinstance(module, nn.Linear):
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
