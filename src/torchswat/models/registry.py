"""The list of networks: what is not in it does not exist.

Each line is one network in one form. The form says for which images the network is made: ``cifar`` for
small ones (28 to 64 pixels: a 3x3 convolution as stem), ``imagenet`` for large ones (about 224 pixels: a stem
that divides height and width by 4), ``digits`` for the 8x8 digits.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from torchswat.errors import InvalidValue, UnknownName
from torchswat.models.airbench import Airbench
from torchswat.models.densenet import DenseNet
from torchswat.models.resnet import BasicBlock, Bottleneck, ResNet
from torchswat.models.vgg import VGG
from torchswat.models.wide_resnet import WideResNet

_RESNET = "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385"
_VGG = "Simonyan and Zisserman 2015, Very Deep Convolutional Networks, arXiv:1409.1556"
_DENSENET = "Huang et al. 2017, Densely Connected Convolutional Networks, arXiv:1608.06993"
_AIRBENCH = "Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv:2404.00498"
_WIDE_RESNET = "Zagoruyko and Komodakis 2016, Wide Residual Networks, arXiv:1605.07146"


@dataclass(frozen=True)
class ModelInfo:
    """One network in one form.

    Attributes
    ----------
    name : str
        What `create` is given.
    form : {"cifar", "imagenet", "digits"}
        For which images the network is made.
    summary : str
        One line for a person.
    reference : str
        The publication.
    parameters : int
        Number of parameters, as published, at `num_classes` classes, `in_channels` channels and the published
        width. Publications round, and leave some forms out; then it is the exact count of the network they
        describe.
    build : callable
        Makes the module from the keywords `num_classes`, `in_channels` and, where `width` is set, `width`.
    num_classes : int, default 10
        Number of outputs that `create` takes by default.
    in_channels : int, default 3
        Channels of the images that `create` takes by default.
    image_size : int, default 32
        Height and width, in pixels, of the images the form is made for; others work too.
    width : int or None, default None
        Channels of the first stage, where `create` lets it be changed.

    Examples
    --------
    >>> info("resnet18").image_size, info("resnet18", "imagenet").image_size
    (32, 224)
    """

    name: str
    form: str
    summary: str
    reference: str
    parameters: int
    build: Callable[..., nn.Module]
    num_classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    width: int | None = None


def _residual(
    name: str, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], cifar: int, imagenet: int
) -> tuple[ModelInfo, ModelInfo]:
    """The two forms of a four-stage residual network, with their numbers of parameters."""
    layers = f"ResNet-{name.removeprefix('resnet')}"
    small, large = partial(ResNet, block, blocks), partial(ResNet, block, blocks, stem="imagenet")
    return (
        ModelInfo(name, "cifar", f"{layers} for small images", _RESNET, cifar, small, width=64),
        ModelInfo(name, "imagenet", layers, _RESNET, imagenet, large, 1000, image_size=224, width=64),
    )


MODELS: tuple[ModelInfo, ...] = (
    *_residual("resnet18", BasicBlock, (2, 2, 2, 2), cifar=11_173_962, imagenet=11_689_512),
    *_residual("resnet34", BasicBlock, (3, 4, 6, 3), cifar=21_282_122, imagenet=21_797_672),
    *_residual("resnet50", Bottleneck, (3, 4, 6, 3), cifar=23_520_842, imagenet=25_557_032),
    *_residual("resnet101", Bottleneck, (3, 4, 23, 3), cifar=42_512_970, imagenet=44_549_160),
    ModelInfo("vgg16", "cifar", "VGG-16 with batch norm, one linear layer", _VGG, 14_728_266, VGG),
    ModelInfo(
        "vgg16",
        "imagenet",
        "VGG-16 with batch norm, three linear layers",
        _VGG,
        138_365_992,
        partial(VGG, "imagenet"),
        num_classes=1000,
        image_size=224,
    ),
    ModelInfo(
        "densenet121",
        "cifar",
        "DenseNet-BC-121, growth 32, for small images",
        _DENSENET,
        6_956_298,
        DenseNet,
    ),
    ModelInfo(
        "densenet121",
        "imagenet",
        "DenseNet-BC-121, growth 32",
        _DENSENET,
        7_978_856,
        partial(DenseNet, stem="imagenet"),
        num_classes=1000,
        image_size=224,
    ),
    ModelInfo("wrn28-10", "cifar", "WRN-28-10, without dropout", _WIDE_RESNET, 36_479_194, WideResNet),
    ModelInfo(
        "resnet20",
        "cifar",
        "ResNet-20 of the CIFAR family (section 4.2), 16-32-64 channels",
        _RESNET,
        269_722,
        partial(ResNet, BasicBlock, (3, 3, 3), shortcut="padding"),
        width=16,
    ),
    ModelInfo(
        "resnet8",
        "cifar",
        "ResNet-8 of the CIFAR family (section 4.2), 16-32-64 channels: for little hardware",
        _RESNET,
        75_290,
        partial(ResNet, BasicBlock, (1, 1, 1), shortcut="padding"),
        width=16,
    ),
    ModelInfo(
        "airbench",
        "cifar",
        "whitened network of three groups, 64-256-256 channels: trains in eight epochs",
        _AIRBENCH,
        1_972_792,
        Airbench,
        width=64,
    ),
    ModelInfo(
        "airbench-deep",
        "cifar",
        "the same with three convolutions a group, the last two around a shortcut",
        _AIRBENCH,
        3_190_456,
        partial(Airbench, deep=True),
        width=64,
    ),
    ModelInfo(
        "resnet-digits",
        "digits",
        "two residual blocks, 32-64 channels, for the 8x8 digits: trains in seconds",
        _RESNET,
        77_290,
        partial(ResNet, BasicBlock, (1, 1)),
        in_channels=1,
        image_size=8,
        width=32,
    ),
)


def names() -> list[str]:
    """Return the names of all networks, each once.

    Returns
    -------
    list of str

    Examples
    --------
    >>> names()[:3]
    ['resnet18', 'resnet34', 'resnet50']
    """
    return list(dict.fromkeys(model.name for model in MODELS))


def info(name: str, form: str | None = None) -> ModelInfo:
    """Return what is known of a network in one of its forms.

    Parameters
    ----------
    name : str
        One of `names()`.
    form : str, optional
        ``"cifar"``, ``"imagenet"`` or ``"digits"``; by default the first form the network has.

    Returns
    -------
    ModelInfo

    Raises
    ------
    UnknownName
        If there is no such network, or not in this form.

    Examples
    --------
    >>> info("resnet50", "imagenet").parameters
    25557032
    """
    forms = {model.form: model for model in MODELS if model.name == name}
    if not forms:
        raise UnknownName.of("model", name, names())
    if form is None:
        return next(iter(forms.values()))
    if form not in forms:
        raise UnknownName.of(f"form of {name}", form, forms)
    return forms[form]


def create(
    name: str,
    *,
    form: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Build a network by name: a plain torch module with fresh weights (`he_normal_`; `Airbench` has its own).

    Parameters
    ----------
    name : str
        One of `names()`.
    form : str, optional
        ``"cifar"``, ``"imagenet"`` or ``"digits"``; by default the first form the network has, which is
        ``"cifar"`` for all but the digits' network.
    num_classes : int, optional
        Number of outputs; by default that of the form: 10, or 1000 for ``"imagenet"``.
    in_channels : int, optional
        Channels of the images, 1 for grey ones; by default that of the form, 3 (digits: 1).
    width : int, optional
        Channels of the first stage of a residual network, to which the other stages are proportional; by
        default as published.

    Returns
    -------
    nn.Module
        Maps images, float of shape (N, in_channels, H, W), to scores, float of shape (N, num_classes).

    Raises
    ------
    UnknownName
        If there is no such network, or not in this form.
    InvalidValue
        If a number is not positive, or the network has no `width` to change.

    References
    ----------
    ``info(name).reference`` cites the publication of each network. Initialisation: He et al. 2015, *Delving
    Deep into Rectifiers*, arXiv:1502.01852, section 2.2.

    Examples
    --------
    >>> import torch
    >>> model = create("resnet18", num_classes=100, width=8)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    model = info(name, form)
    options = {
        "num_classes": model.num_classes if num_classes is None else num_classes,
        "in_channels": model.in_channels if in_channels is None else in_channels,
    }
    if model.width is not None:
        options["width"] = model.width if width is None else width
    elif width is not None:
        adjustable = ", ".join(dict.fromkeys(other.name for other in MODELS if other.width))
        raise InvalidValue(
            f"width={width!r}: {name} has a fixed width. Leave width out, or use one of {adjustable}."
        )
    for option, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise InvalidValue(f"{option}={value!r}: a model needs a whole number of at least 1.")
    return model.build(**options)
