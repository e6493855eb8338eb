"""VGG-16: configuration D, and the widespread names."""

from __future__ import annotations

import torch
from torch import nn

from torchswat import models
from torchswat.models.vgg import VGG


def test_sixteen_layers_carry_weights():
    with torch.device("meta"):
        model = models.create("vgg16", form="imagenet")
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 16


def test_imagenet_form_has_the_widespread_names():
    with torch.device("meta"):
        state = models.create("vgg16", form="imagenet").state_dict()
    shapes = {
        "features.0.weight": (64, 3, 3, 3),
        "features.0.bias": (64,),
        "features.1.running_mean": (64,),
        "features.40.weight": (512, 512, 3, 3),
        "classifier.0.weight": (4096, 25088),
        "classifier.6.weight": (1000, 4096),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_biases_under_batch_norm_change_nothing():
    """What the module's docstring says of them."""
    torch.manual_seed(0)
    model = VGG().train()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(pictures)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.add_(0.5)
        after = model(pictures)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_picture_of_eight_pixels_passes():
    with torch.device("meta"):
        model = models.create("vgg16", in_channels=1)
    assert model(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 10)
