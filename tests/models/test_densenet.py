"""DenseNet-BC: connections, compression and the widespread names."""

from __future__ import annotations

import torch
from torch import nn

from torchswat import models
from torchswat.models.densenet import DenseLayer, DenseNet


def test_imagenet_form_has_the_widespread_names():
    with torch.device("meta"):
        state = models.create("densenet121", form="imagenet").state_dict()
    shapes = {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.weight": (64,),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock3.denselayer24.conv2.weight": (32, 128, 3, 3),
        "features.transition2.conv.weight": (256, 512, 1, 1),
        "features.norm5.running_var": (1024,),
        "classifier.weight": (1000, 1024),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_name_counts_the_layers():
    with torch.device("meta"):
        for form in ("cifar", "imagenet"):
            model = models.create("densenet121", form=form)
            assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 121


def test_a_layer_passes_its_input_on():
    layer = DenseLayer(6, growth=4)
    x = torch.randn(2, 6, 5, 5)
    out = layer(x)
    assert torch.equal(out[:, :6], x)
    assert out.shape == (2, 10, 5, 5)


def test_transitions_halve_the_channels():
    model = DenseNet((2, 3), growth=4)
    assert model.features.transition1.conv.out_channels == (8 + 2 * 4) // 2
    assert model.classifier.in_features == 8 + 3 * 4


def test_one_step_reaches_every_parameter():
    torch.manual_seed(0)
    model = DenseNet((2, 2), growth=4)
    model(torch.randn(4, 3, 16, 16)).logsumexp(dim=1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
