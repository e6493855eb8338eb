"""What a recipe makes of a data set's augmentation, of the optimizer's groups, and of a network's start."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from data.fabricate import write_pictures

from torchswat.data import RandomCrop, RandomResizedCrop, load
from torchswat.errors import InvalidValue
from torchswat.training.build import (
    build_augmentation,
    build_model,
    build_optimizer,
    initialise_from_data_,
    set_learning_rates_,
    train_batches,
)
from torchswat.training.muon import Muon
from torchswat.training.recipe import load_recipe


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, RandomCrop(1, "none")),
        ({"augment": False}, None),
        ({"shift": 0}, RandomCrop(0, "none")),
        ({"shift": 2, "border": "reflect"}, RandomCrop(2, "none", "reflect")),
        ({"flip": "alternating"}, RandomCrop(1, "alternating")),
    ],
)
def test_the_data_sets_own_augmentation_but_for_what_the_recipe_says(tiny, section, expected):
    assert build_augmentation(tiny(data=section), load("digits")) == expected


@pytest.mark.parametrize("section", [{"shift": 8}, {"shift": 9, "border": "reflect"}])
def test_an_image_is_not_moved_out_of_sight(tiny, section):
    with pytest.raises(
        InvalidValue, match=rf"data.shift is {section['shift']}.*8 pixels a side; take 0 to 7"
    ):
        build_augmentation(tiny(data=section), load("digits"))


def test_a_reflected_border_fits_the_image_also_where_the_shift_is_the_data_sets(tiny):
    small = load("synthetic", shape=[3, 4, 4])
    with pytest.raises(InvalidValue, match=r"data\.shift is 4"):
        build_augmentation(tiny(data={"border": "reflect"}), small)


def test_folders_are_mirrored_as_asked_and_never_shifted(tiny, tmp_path):
    pets = load(str(write_pictures(tmp_path / "pets")))
    assert build_augmentation(tiny(data={"flip": "alternating"}), pets) == RandomResizedCrop(
        flip="alternating"
    )
    for section, key in ({"shift": 1}, "shift"), ({"border": "reflect"}, "border"):
        with pytest.raises(InvalidValue, match=f"data.{key} is for small images in memory. pets is a folder"):
            build_augmentation(tiny(data=section), pets)


def test_training_sees_each_image_and_its_mirror_image_in_turns(tiny):
    recipe = tiny(data={"shift": 0, "flip": "alternating", "batch_size": 1442})
    batches = train_batches(recipe, load("digits"))
    seen = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        ((images, _),) = batches
        seen.append(images[torch.from_numpy(order_of(batches)).argsort()])
    assert all(one.equal(other.flip(3)) for one, other in pairwise(seen))


def order_of(batches):
    from torchswat.data import draws

    return draws.permutation(batches.seed, draws.ORDER, batches.epoch, len(batches.split))


FAST = ["data={name: synthetic, batch_size: 64, options: {shape: [3, 16, 16]}}", "model.width=2"]


def test_groups_of_the_fast_recipe_are_those_of_the_publication():
    """Its code sums the loss over a batch of 2000; there every group decays by 2e-6 * 2000 of itself in a step."""
    recipe = load_recipe("cifar-fast", FAST)
    model = build_model(recipe, load("synthetic", shape=[3, 16, 16]), 8)
    optimizer = build_optimizer(recipe, model)
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = {key: group[key] for key in group.keys() - {"params", "nesterov"}}
    convolutions = {name for name in names.values() if "conv" in name}
    biases = {name for name in names.values() if "norm" in name and name.endswith("bias")}
    assert found.keys() == convolutions | biases | {"whiten.bias", "head.weight"}
    assert len(convolutions) == len(biases) == 6
    decay = 2e-6 * 2000
    for name, rate, momentum in (
        *((name, 0.24, 0.6) for name in convolutions),
        *((name, 0.053 * 2000, 0.85) for name in (*biases, "whiten.bias")),
        ("head.weight", 0.67 * 2000, 0.85),
    ):
        filters = name in convolutions
        assert found[name] == {
            "lr": pytest.approx(rate),
            "peak_lr": pytest.approx(rate),
            "momentum": momentum,
            "weight_decay": 0 if filters else pytest.approx(decay / rate),
            "orthogonalize": filters,
            "epochs": 3 if name == "whiten.bias" else 8,
        }, name
    set_learning_rates_(recipe, optimizer, epoch=2)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["whiten.bias"] == pytest.approx(106 / 3) and rates["head.weight"] == pytest.approx(
        1340 * 0.75
    )
    set_learning_rates_(recipe, optimizer, epoch=3)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["whiten.bias"] == 0 and rates["group1.conv1.weight"] == pytest.approx(0.24 * 5 / 8)


def test_a_network_is_initialised_from_normalised_training_images():
    dataset = load("synthetic", shape=[3, 16, 16])
    model, other = (build_model(load_recipe("cifar-fast", FAST), dataset, 8) for _ in range(2))
    initialise_from_data_(load_recipe("cifar-fast", FAST), model, dataset)
    images = dataset.train.images.float() / 255
    for channel, (mean, std) in enumerate(zip(dataset.train.mean, dataset.train.std, strict=True)):
        images[:, channel] = (images[:, channel] - mean) / std
    other.initialise_from_(images)
    torch.testing.assert_close(model.whiten.weight, other.whiten.weight, rtol=1e-3, atol=1e-3)


def test_networks_of_the_paper_need_no_data_to_start(tiny):
    dataset, recipe = load("digits"), tiny()
    model = build_model(recipe, dataset, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialise_from_data_(recipe, model, dataset)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
