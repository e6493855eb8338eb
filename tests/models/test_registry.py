"""The registry: every network in every form keeps the promises of its line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from torchswat import models
from torchswat.errors import InvalidValue, UnknownName
from torchswat.models.registry import MODELS

# Wide and deep networks cost seconds a step; the same classes are tried on their small relatives.
SMALL = {"resnet8", "resnet20", "resnet-digits"}


def identify(model: models.ModelInfo) -> str:
    return f"{model.name}-{model.form}"


every_model = pytest.mark.parametrize("model", MODELS, ids=identify)
small_model = pytest.mark.parametrize("model", [m for m in MODELS if m.name in SMALL], ids=identify)


def on_meta(model: models.ModelInfo, **options: int) -> nn.Module:
    """The network without memory: shapes alone."""
    with torch.device("meta"):
        return models.create(model.name, form=model.form, **options)


def pictures(model: models.ModelInfo, count: int, device: str = "cpu") -> torch.Tensor:
    size = model.image_size
    return torch.randn(count, model.in_channels, size, size, device=device)


@every_model
def test_number_of_parameters_is_as_published(model):
    network = on_meta(model)
    assert sum(parameter.numel() for parameter in network.parameters()) == model.parameters


def test_published_numbers_of_the_imagenet_forms():
    published = {
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "vgg16": 138_365_992,
        "densenet121": 7_978_856,
    }
    assert {m.name: m.parameters for m in MODELS if m.form == "imagenet"} == published


@every_model
def test_scores_have_one_column_a_class(model):
    network = on_meta(model, num_classes=7).eval()
    assert network(pictures(model, 3, "meta")).shape == (3, 7)


@every_model
def test_grey_pictures(model):
    network = on_meta(model, in_channels=1).eval()
    grey = torch.empty(2, 1, model.image_size, model.image_size, device="meta")
    assert network(grey).shape == (2, model.num_classes)


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("model", [m for m in MODELS if m.form == "cifar"], ids=identify)
def test_cifar_forms_take_other_small_pictures(model, size):
    scores = on_meta(model)(torch.empty(2, 3, size, size, device="meta"))
    assert scores.shape == (2, 10)


def test_names_are_listed_once_and_all_can_be_looked_up():
    assert len(set(models.names())) == len(models.names())
    assert {m.name for m in MODELS} == set(models.names())
    assert len({(m.name, m.form) for m in MODELS}) == len(MODELS)
    for model in MODELS:
        assert models.info(model.name, model.form) is model


def test_the_first_form_is_the_default():
    assert models.info("resnet18").form == "cifar"
    assert models.info("resnet-digits").form == "digits"


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown model 'resnet-18': did you mean 'resnet18'\?"):
        models.create("resnet-18")


def test_unknown_form_lists_the_forms():
    with pytest.raises(UnknownName, match=r"unknown form of wrn28-10 'imagenet'.*Known: cifar\."):
        models.create("wrn28-10", form="imagenet")


@pytest.mark.parametrize("option", ["num_classes", "in_channels", "width"])
@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_numbers_must_be_whole_and_positive(option, value):
    with pytest.raises(InvalidValue, match=f"{option}={value!r}: a model needs a whole number of at least 1"):
        models.create("resnet8", **{option: value})


def test_width_of_a_network_of_fixed_width_is_refused():
    with pytest.raises(InvalidValue, match=r"width=8: vgg16 has a fixed width.*resnet18"):
        models.create("vgg16", width=8)


def test_width_scales_every_stage():
    with torch.device("meta"):
        narrow = models.create("resnet18", width=16)
    outputs = {module.out_channels for module in narrow.modules() if isinstance(module, nn.Conv2d)}
    assert outputs == {16, 32, 64, 128}


@small_model
def test_one_step_reaches_every_parameter(model):
    torch.manual_seed(0)
    network = models.create(model.name, form=model.form)
    network(pictures(model, 4)).logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.slow
@every_model
def test_one_step_of_the_whole_network_reaches_every_parameter(model):
    torch.manual_seed(0)
    network = models.create(model.name, form=model.form)
    network(pictures(model, 2)).logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # what is made from the data, and norms without a weight of their own
            assert model.name.startswith("airbench"), name
            continue
        assert parameter.grad is not None, name
        idle = model.name == "vgg16" and name.startswith("features") and name.endswith("bias")
        assert idle or parameter.grad.abs().sum() > 0, name


@small_model
def test_evaluation_takes_a_batch_of_any_size(model):
    torch.manual_seed(0)
    network = models.create(model.name, form=model.form).eval()
    batch = pictures(model, 5)
    together = network(batch)
    alone = torch.cat([network(picture[None]) for picture in batch])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert network(batch[:0]).shape == (0, model.num_classes)


@small_model
def test_channels_last_gives_the_same_scores(model):
    torch.manual_seed(0)
    network = models.create(model.name, form=model.form).eval()
    batch = pictures(model, 3)
    expected = network(batch)
    network.to(memory_format=torch.channels_last)
    scores = network(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@small_model
def test_a_deep_copy_is_equal_and_apart(model):
    torch.manual_seed(0)
    network = models.create(model.name, form=model.form).eval()
    twin = copy.deepcopy(network)
    batch = pictures(model, 2)
    assert torch.equal(twin(batch), network(batch))
    with torch.no_grad():
        twin.fc.bias.add_(1)
    assert not torch.equal(twin(batch), network(batch))


@small_model
def test_a_seed_repeats_the_weights(model):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(models.create(model.name, form=model.form).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_model
def test_parameters_may_be_replaced_from_outside(model):
    """Nothing in a forward pass reaches around the module's own parameters."""
    network = on_meta(model).eval()
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    scores = functional_call(network, state, (pictures(model, 1, "meta"),))
    assert scores.shape == (1, model.num_classes)


@pytest.mark.parametrize("name", ["resnet8", "resnet-digits"])
def test_compiler_sees_one_graph(name):
    model = models.info(name)
    network = models.create(name).eval()
    batch = pictures(model, 2)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), network(batch))


@pytest.mark.slow
@every_model
def test_compiler_sees_one_graph_of_every_network(model):
    network = on_meta(model).eval()
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert compiled(pictures(model, 2, "meta")).shape == (2, model.num_classes)
