import torch

from torchswat.data import RandomCrop, load


def test_the_digits_and_their_fixed_split():
    digits = load()
    assert digits.name == "digits" and digits.classes == tuple("0123456789")
    assert digits.train.images.shape == (1442, 1, 8, 8) and digits.test.images.shape == (355, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8 and digits.train.images.max() == 255
    shares = digits.test.labels.bincount() / (digits.train.labels.bincount() + digits.test.labels.bincount())
    assert ((shares > 0.19) & (shares <= 0.2)).all()
    assert digits.test.images.equal(load("digits").test.images)
    # The fifth zero is the 37th digit of the whole set, so it is the first zero of the test.
    assert digits.test.labels[:6].tolist() == [5, 0, 9, 8, 7, 1]


def test_digits_are_not_mirrored():
    assert load("digits").augmentation == RandomCrop(padding=1, flip="none")
