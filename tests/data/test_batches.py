import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchswat.data import Batches, Images, RandomCrop, RandomResizedCrop, draws, load
from torchswat.errors import InvalidData, InvalidValue

from .fabricate import write_pictures

counts = st.integers(1, 40)


def numbered(count: int) -> Images:
    """Make a split in which each picture has one bright pixel more than the last, and its number as label."""
    images = (torch.arange(48) <= torch.arange(count)[:, None]).reshape(count, 3, 4, 4).to(torch.uint8) * 255
    return Images(
        torch.arange(count), tuple(map(str, range(count))), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), images
    )


def epoch_of(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def by_label(batches: Batches) -> torch.Tensor:
    images, labels = epoch_of(batches)
    return images[labels.argsort()]


@given(counts, st.integers(1, 50), st.booleans(), st.booleans())
def test_an_epoch_holds_every_sample_once(count, batch_size, shuffle, drop_last):
    if drop_last and count < batch_size:
        return
    batches = Batches(numbered(count), batch_size, shuffle=shuffle, drop_last=drop_last)
    labels = [labels for _, labels in batches]
    assert len(labels) == len(batches)
    assert all(len(batch) == batch_size for batch in labels[: count // batch_size])
    seen = torch.cat(labels).tolist()
    assert len(set(seen)) == len(seen) == (count // batch_size * batch_size if drop_last else count)
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_pixels_are_normalised_per_colour():
    split = numbered(5)
    ((images, labels),) = Batches(split, 5)
    assert images.dtype == torch.float32 and images.is_contiguous() and labels.dtype == torch.int64
    mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))
    torch.testing.assert_close(images, (split.images / 255 - mean) / std)


@settings(max_examples=10)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 5), st.integers(0, 5))
def test_values_are_bitwise_those_of_the_first_version(count, batch_size, seed, epoch):
    """The formula of before batches were cropped and normalised in pieces."""
    split, crop = numbered(count), RandomCrop(1)
    batches = Batches(split, batch_size, shuffle=True, seed=seed, augment=crop)
    batches.set_epoch(epoch)
    mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))
    for images, labels in batches:
        uniform = draws.uniform(seed, draws.AUGMENTATION, epoch, labels.numpy(), 3)  # labels are numbers here
        pixels = crop(split.images[labels], uniform)
        assert images.equal(pixels.to(torch.float32).mul_(1 / (255 * std)).add_(-mean / std))


@given(counts, st.integers(1, 50), st.integers(0, 6))
def test_alternating_flips_mirror_each_image_in_every_second_epoch(count, batch_size, epoch):
    split = numbered(count)
    batches = Batches(split, batch_size, shuffle=True, augment=RandomCrop(0, flip="alternating"))
    plain = by_label(Batches(split, count))
    seen = []
    for one in (epoch, epoch + 1, epoch + 2):
        batches.set_epoch(one)
        seen.append(by_label(batches))
    assert seen[0].equal(seen[2]) and seen[1].equal(seen[0].flip(3))
    sides = [
        (image.equal(as_is), image.equal(as_is.flip(2))) for image, as_is in zip(seen[0], plain, strict=True)
    ]
    assert all(map(any, sides))


@given(counts, st.integers(0, 5), st.integers(0, 5), st.data())
def test_a_resumed_epoch_equals_the_uninterrupted_one(count, seed, epoch, data):
    batches = Batches(numbered(count), 7, shuffle=True, seed=seed, augment=RandomCrop(1))
    batches.set_epoch(epoch)
    whole = list(batches)
    start = data.draw(st.integers(0, len(batches)))
    fresh = Batches(numbered(count), 7, shuffle=True, seed=seed, augment=RandomCrop(1))
    fresh.set_epoch(epoch, start)
    rest = list(fresh)
    assert len(rest) == len(whole) - start
    for (images, labels), (again, same) in zip(whole[start:], rest, strict=True):
        assert images.equal(again) and labels.equal(same)


@given(counts, st.integers(1, 50), st.booleans(), st.booleans())
def test_a_picture_is_augmented_alike_in_any_batch_and_order(count, batch_size, shuffle, drop_last):
    split = numbered(count)
    reference = by_label(Batches(split, 8, seed=3, augment=RandomCrop(1)))
    assert by_label(Batches(split, batch_size, shuffle=shuffle, seed=3, augment=RandomCrop(1))).equal(
        reference
    )


@given(counts, st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_the_shares_of_the_processes_make_up_each_batch(count, share, world_size, drop_last):
    batch_size = share * world_size
    if drop_last and count < batch_size:
        return
    options = {"shuffle": True, "seed": 1, "augment": RandomCrop(1), "drop_last": drop_last}
    whole = list(Batches(numbered(count), batch_size, **options))
    ranks = [
        list(Batches(numbered(count), batch_size, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(whole)}
    for (images, labels), *shares in zip(whole, *ranks, strict=True):
        assert torch.cat([part for part, _ in shares]).equal(images)
        assert torch.cat([part for _, part in shares]).equal(labels)
        sizes = [len(part) for part, _ in shares]
        assert max(sizes) - min(sizes) <= (len(images) < batch_size)


def test_epochs_and_seeds_differ():
    def run(seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = Batches(numbered(40), 10, shuffle=True, seed=seed, augment=RandomCrop(1))
        batches.set_epoch(epoch)
        return epoch_of(batches)

    images, labels = run(0, 0)
    assert run(0, 0)[0].equal(images)
    for other, other_labels in run(0, 1), run(1, 0):
        assert not other_labels.equal(labels)
        assert not other[other_labels.argsort()].equal(images[labels.argsort()])


def test_without_augmentation_nothing_changes_between_epochs():
    batches = Batches(numbered(9), 4)
    first = epoch_of(batches)
    batches.set_epoch(1)
    assert all(map(torch.equal, first, epoch_of(batches)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2 processes"),
        ({"rank": -1}, "rank is -1"),
        ({"world_size": 0}, "rank is 0 of 0"),
        ({"batch_size": 5, "world_size": 2}, "batch_size is 5 over 2 processes: take a multiple of 2"),
        ({"workers": 0}, "workers is 0"),
        ({"batch_size": 99, "drop_last": True}, "nothing of the 9 samples is left"),
    ],
)
def test_settings_outside_what_is_allowed(options, words):
    with pytest.raises(InvalidValue, match=words):
        Batches(numbered(9), **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    ("epoch", "start", "words"), [(-1, 0, "epoch is -1"), (0, 4, "start is 4"), (0, -1, "start")]
)
def test_positions_outside_what_is_allowed(epoch, start, words):
    with pytest.raises(InvalidValue, match=words):
        Batches(numbered(9), 4).set_epoch(epoch, start)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return load(str(write_pictures(tmp_path_factory.mktemp("data") / "pets", train=6)), size=16, resize=20)


@pytest.mark.parametrize("augment", [None, RandomResizedCrop()])
@settings(max_examples=15)
@given(st.integers(1, 13), st.integers(1, 4), st.integers(0, 12))
def test_pictures_do_not_depend_on_workers_batches_or_start(pets, augment, batch_size, workers, start):
    reference = epoch_of(Batches(pets.train, 12, seed=2, augment=augment, workers=1))[0]
    batches = Batches(pets.train, batch_size, seed=2, augment=augment, workers=workers)
    batches.set_epoch(0, min(start, len(batches)))
    images = [images for images, _ in batches]
    skipped = min(start, len(batches)) * batch_size
    assert torch.cat([*images, reference[:0]]).equal(reference[skipped:])


def test_pictures_are_shared_even_where_a_share_is_empty(pets):
    shares = [
        [len(labels) for _, labels in Batches(pets.test, 3, rank=rank, world_size=3)] for rank in range(3)
    ]
    assert shares == [[1, 1], [1, 0], [1, 0]]


def test_threads_end_with_the_epoch_an_early_stop_or_an_error(pets, tmp_path):
    before = set(threading.enumerate())
    list(Batches(pets.train, 2))
    iterator = iter(Batches(pets.train, 2))
    next(iterator)
    assert set(threading.enumerate()) > before  # they do work ahead
    iterator.close()
    broken = load(str(write_pictures(tmp_path / "broken")))
    broken.train.paths[3].write_bytes(b"")
    with pytest.raises(InvalidData):
        list(Batches(broken.train, 1))
    assert set(threading.enumerate()) == before
