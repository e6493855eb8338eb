import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data import Images, RandomCrop, RandomResizedCrop, load
from torchswat.data.dataset import colour_statistics
from torchswat.errors import InvalidValue

from .fabricate import write_pictures


def split_of(labels: list[int]) -> Images:
    images = torch.arange(len(labels)).to(torch.uint8).reshape(-1, 1, 1, 1)
    return Images(torch.tensor(labels), tuple("abcdef"), (0.5,), (0.5,), images)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 9), st.data())
def test_a_limit_keeps_the_shares_of_the_classes(labels, seed, data):
    split = split_of(labels)
    count = data.draw(st.integers(1, len(labels)))
    kept = split.limit(count, seed)
    numbers = kept.images.flatten().tolist()
    assert len(kept) == len(set(numbers)) == count
    assert numbers == sorted(numbers)
    assert kept.labels.tolist() == [labels[number] for number in numbers]
    sizes = [(labels.count(label), kept.labels.tolist().count(label)) for label in set(labels)]
    # Webster: no sample moved from one class to another would bring their shares closer together.
    most = max((taken - 0.5) / size for size, taken in sizes)
    least = min((taken + 0.5) / size for size, taken in sizes)
    assert most <= least + 1e-6
    assert set(split.limit(max(1, count - 1), seed).images.flatten().tolist()) <= set(numbers)


def test_a_limit_is_seeded():
    split = split_of([0, 1] * 100)
    assert split.limit(50, 1).images.equal(split.limit(50, 1).images)
    assert not split.limit(50, 1).images.equal(split.limit(50, 2).images)


@pytest.mark.parametrize("count", [0, -1, 5])
def test_a_limit_outside_what_there_is(count):
    with pytest.raises(InvalidValue, match=f"limit is {count}: this split has 4 samples"):
        split_of([0, 1, 2, 3]).limit(count)


def test_a_folder_can_be_limited(tmp_path):
    kept = load(str(write_pictures(tmp_path / "pets"))).train.limit(4)
    assert [path.parent.name for path in kept.paths] == ["cat", "cat", "dog", "dog"]
    assert kept.labels.tolist() == [0, 0, 1, 1]


def test_each_kind_refuses_the_augmentation_of_the_other(tmp_path):
    uniform = torch.zeros(1, 41).numpy()
    with pytest.raises(InvalidValue, match="take RandomCrop"):
        split_of([0]).read(torch.tensor([0]), RandomResizedCrop(), uniform, map)
    pictures = load(str(write_pictures(tmp_path / "pets"))).train
    with pytest.raises(InvalidValue, match="take RandomResizedCrop"):
        pictures.read(torch.tensor([0]), RandomCrop(), uniform, map)


@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 99))
def test_colour_statistics(colours, count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, colours, 3, 2), dtype=torch.uint8, generator=generator)
    mean, std = colour_statistics(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), pixels.mean(1))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), pixels.std(1, correction=0))
