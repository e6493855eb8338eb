import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data import CentreCrop, RandomCrop, RandomResizedCrop, draws
from torchswat.data.augment import draw
from torchswat.errors import InvalidValue

units = st.floats(0, 1, exclude_max=True)


def pixel(image, row, column, border):
    """The value at a place in or around an image (C, H, W): walk into it, turning at its outermost pixels."""
    _, height, width = image.shape
    if not (0 <= row < height and 0 <= column < width):
        if border == "black":
            return torch.zeros_like(image[:, 0, 0])
        row = -row if row < 0 else 2 * (height - 1) - row if row >= height else row
        column = -column if column < 0 else 2 * (width - 1) - column if column >= width else column
    return image[:, row, column]


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 5),
    st.sampled_from(["random", "alternating", "none"]),
    st.sampled_from(["black", "reflect"]),
    st.integers(0, 2**32 - 1),
)
def test_a_crop_is_the_image_moved_and_mirrored_pixel_by_pixel(shape, padding, flip, border, seed):
    if border == "reflect":
        padding = min(padding, min(shape[2:]) - 1)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    uniform = np.random.default_rng(seed).random((shape[0], 3))
    before = images.clone()
    result = RandomCrop(padding, flip, border)(images, uniform)
    assert result.dtype == torch.uint8 and result.shape == images.shape and images.equal(before)
    expected = torch.empty_like(images)
    for number, (down, across, mirror) in enumerate(uniform):
        top, left = int(down * (2 * padding + 1)) - padding, int(across * (2 * padding + 1)) - padding
        for row in range(shape[2]):
            for column in range(shape[3]):
                seen = shape[3] - 1 - column if flip != "none" and mirror < 0.5 else column
                expected[number, :, row, column] = pixel(images[number], top + row, left + seen, border)
    assert result.equal(expected)


@given(st.integers(1, 200), st.integers(1, 3), st.integers(4, 33), st.integers(0, 4), st.integers(0, 99))
def test_black_random_crops_are_those_of_the_first_version(count, colours, side, padding, seed):
    """What `RandomCrop` was before it knew other borders and flips: trainings of then can be repeated."""
    images = torch.randint(0, 256, (count, colours, side, side), dtype=torch.uint8)
    uniform = np.random.default_rng(seed).random((count, 3))
    top, left = np.floor(uniform[:, :2] * (2 * padding + 1)).astype(np.int64).T
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))
    old = windows[np.arange(count), :, top, left]
    mirror = uniform[:, 2] < 0.5
    old[mirror] = old[mirror][..., ::-1]
    assert RandomCrop(padding)(images, uniform).numpy().tobytes() == old.tobytes()


samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=30).map(np.array)


@given(st.sampled_from([RandomCrop, RandomResizedCrop]), st.integers(0, 2**63), st.integers(0, 999), samples)
def test_alternating_flips_show_both_sides_in_any_two_epochs(kind, seed, epoch, samples):
    alternating = kind(flip="alternating")
    first, this, next_one = (draw(alternating, seed, e, samples) for e in (0, epoch, epoch + 1))
    assert ((this >= 0) & (this < 1)).all()
    assert ((this[:, -1] < 0.5) == ((first[:, -1] < 0.5) ^ epoch % 2)).all()
    assert ((this[:, -1] < 0.5) != (next_one[:, -1] < 0.5)).all()
    random = draw(kind(), seed, epoch, samples)  # all else is drawn anew, and the first epoch is the same
    assert (this[:, :-1] == random[:, :-1]).all()
    assert (first == draw(kind(), seed, 0, samples)).all()


@given(st.integers(0, 2**53 - 1) | st.sampled_from([0, 2**52 - 1, 2**52, 2**53 - 1]))
def test_every_possible_draw_alternates(bits):
    value = bits * 2.0**-53  # as `draws.uniform` makes them
    reflected = draws.LARGEST - value
    assert 0 <= reflected < 1 and (value < 0.5) != (reflected < 0.5)


def test_half_of_the_images_are_mirrored_in_the_first_epoch():
    mirrored = draw(RandomCrop(flip="alternating"), 0, 0, np.arange(4000))[:, -1] < 0.5
    assert 1850 < mirrored.sum() < 2150


def test_a_reflected_border_as_wide_as_the_image_is_refused():
    with pytest.raises(InvalidValue, match="padding is 3 for images of 3 x 5 pixels"):
        RandomCrop(3, border="reflect")(torch.zeros(1, 1, 3, 5, dtype=torch.uint8), np.zeros((1, 3)))


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
    assert not any(RandomResizedCrop(flip="none").box(50, 50, row)[1] for row in uniform)


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
        (lambda: RandomCrop(flip=True), "flip is True: it must be one of random, alternating, none"),
        (lambda: RandomCrop(border="white"), "border is 'white': it must be one of black, reflect"),
        (lambda: RandomResizedCrop(flip="sometimes"), "flip is 'sometimes'"),
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
