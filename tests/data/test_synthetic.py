import pytest
import torch

from torchswat.data import load
from torchswat.errors import InvalidValue


def test_shape_counts_and_seed():
    first = load("synthetic", shape=(1, 5, 7), classes=3, train=8, test=4, seed=1)
    assert first.shape == (1, 5, 7) and len(first.train) == 8 and len(first.test) == 4
    assert first.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    again = load("synthetic", shape=(1, 5, 7), classes=3, train=8, test=4, seed=1)
    assert first.train.images.equal(again.train.images)
    other = load("synthetic", shape=(1, 5, 7), classes=3, train=8, test=4, seed=2)
    assert not first.train.images.equal(other.train.images)


def test_the_classes_can_be_learnt():
    """The nearest class mean of the training pictures names nearly every test picture."""
    data = load("synthetic")
    means = torch.stack([data.train.images[data.train.labels == c].float().mean(0) for c in range(10)])
    nearest = torch.cdist(data.test.images.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == data.test.labels).float().mean() > 0.95


def test_a_shape_that_is_none():
    with pytest.raises(InvalidValue, match="it must be colours, height, width"):
        load("synthetic", shape=(32, 32))


@pytest.mark.parametrize("option", [{"classes": 0}, {"train": -1}, {"test": 0}, {"shape": (3, 0, 4)}])
def test_sizes_below_one(option):
    with pytest.raises(InvalidValue, match=f"{next(iter(option))} = .*: it must be 1 or more"):
        load("synthetic", **option)
