import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data import CentreCrop, RandomCrop, RandomResizedCrop
from torchswat.errors import InvalidValue

units = st.floats(0, 1, exclude_max=True)


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_crop_is_a_slice_of_the_padded_picture(shape, padding, flip, seed):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    uniform = np.random.default_rng(seed).random((shape[0], 3))
    result = RandomCrop(padding, flip)(images, uniform)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for image, crop, (down, across, mirror) in zip(images, result, uniform, strict=True):
        padded = torch.zeros(shape[1], shape[2] + 2 * padding, shape[3] + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + shape[2], padding : padding + shape[3]] = image
        top, left = int(down * (2 * padding + 1)), int(across * (2 * padding + 1))
        expected = padded[:, top : top + shape[2], left : left + shape[3]]
        assert crop.equal(expected.flip(2) if flip and mirror < 0.5 else expected)


def test_every_shift_and_both_sides_occur():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(2000, 1, 3, 3)
    crops = RandomCrop(padding=1)(image, np.random.default_rng(0).random((2000, 3)))
    _, counts = crops.reshape(2000, 9).unique(dim=0, return_counts=True)
    assert len(counts) == 18 and counts.min() > 60


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_a_random_box_lies_in_the_picture(width, height, seed):
    crop = RandomResizedCrop()
    (left, top, right, bottom), _ = crop.box(width, height, np.random.default_rng(seed).random(crop.draws))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(st.integers(100, 900), st.integers(100, 900), st.integers(0, 2**32 - 1))
def test_a_random_box_has_an_allowed_area_and_shape(width, height, seed):
    crop = RandomResizedCrop(area=(0.1, 0.6))
    (left, top, right, bottom), _ = crop.box(width, height, np.random.default_rng(seed).random(crop.draws))
    box_width, box_height = right - left, bottom - top
    if int(box_width) == box_width and int(box_height) == box_height:  # sides are rounded to pixels
        assert 0.09 < box_width * box_height / (width * height) < 0.62
    assert 0.72 < box_width / box_height < 1.39


def test_a_picture_too_long_for_any_box_is_cut_in_its_centre():
    box, mirror = RandomResizedCrop(area=(0.9, 1.0)).box(1000, 10, np.full(41, 0.5))
    assert box == pytest.approx((500 - 20 / 3, 0, 500 + 20 / 3, 10))
    assert not mirror
    box, _ = RandomResizedCrop(area=(0.9, 1.0)).box(10, 1000, np.full(41, 0.5))
    assert box == pytest.approx((0, 500 - 20 / 3, 10, 500 + 20 / 3))


def test_boxes_are_mirrored_half_of_the_time_or_never():
    uniform = np.random.default_rng(0).random((1000, RandomResizedCrop.draws))
    assert 420 < sum(RandomResizedCrop().box(50, 50, row)[1] for row in uniform) < 580
    assert not any(RandomResizedCrop(flip=False).box(50, 50, row)[1] for row in uniform)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(0, 300))
def test_the_centre_crop_is_centred_and_square(width, height, size, more):
    left, top, right, bottom = CentreCrop(size + more, size).box(width, height)
    assert left >= 0 and top >= 0
    assert left + right == pytest.approx(width) and top + bottom == pytest.approx(height)
    assert right - left == pytest.approx(bottom - top)
    assert right - left == pytest.approx(min(width, height) * size / (size + more))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomCrop(padding=-1), "padding is -1"),
        (lambda: RandomResizedCrop(area=(0.0, 1.0)), r"area is \(0.0, 1.0\)"),
        (lambda: RandomResizedCrop(area=(0.5, 0.2)), "area is"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio is"),
        (lambda: CentreCrop(resize=200, size=224), "size is 224 and resize is 200"),
        (lambda: CentreCrop(resize=10, size=0), "size is 0"),
    ],
)
def test_settings_outside_what_is_allowed(make, words):
    with pytest.raises(InvalidValue, match=words):
        make()
