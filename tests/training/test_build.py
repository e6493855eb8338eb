"""What a recipe changes of a data set's augmentation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from data.fabricate import write_pictures

from torchswat.data import RandomCrop, RandomResizedCrop, load
from torchswat.errors import InvalidValue
from torchswat.training.build import build_augmentation, train_batches


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
