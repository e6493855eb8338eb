import numpy as np
import pytest
import torch

from torchswat.data import RandomCrop, load
from torchswat.errors import InvalidData, MissingData

from .fabricate import Python2, cifar_batch, random_bytes, write_cifar10, write_cifar100


def test_cifar10_in_its_published_layout(tmp_path):
    write_cifar10(tmp_path)
    dataset = load("cifar10", tmp_path)
    assert dataset.train.images.shape == (20, 3, 32, 32) and dataset.train.images.dtype == torch.uint8
    assert dataset.test.images.shape == (4, 3, 32, 32)
    assert dataset.train.labels.tolist() == [0, 1, 2, 3] * 5 and dataset.train.labels.dtype == torch.int64
    assert dataset.classes[3] == "class 3" and len(dataset.classes) == 10
    assert dataset.augmentation == RandomCrop(padding=4, flip="random")
    third = random_bytes(4, 3072, seed=2)  # of data_batch_3
    np.testing.assert_array_equal(dataset.train.images[9, 2, 5, 7], third[1, 2 * 1024 + 5 * 32 + 7])


def test_cifar100_in_its_published_layout(tmp_path):
    write_cifar100(tmp_path)
    dataset = load("cifar100", tmp_path)
    assert len(dataset.train) == len(dataset.test) == 6
    assert len(dataset.classes) == 100 and dataset.classes[99] == "class 99"
    np.testing.assert_array_equal(dataset.test.images.flatten(1), random_bytes(6, 3072, seed=1))


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_file_is_named_with_its_md5_and_source(tmp_path, name):
    (write_cifar10(tmp_path) / name).unlink()
    with pytest.raises(MissingData) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    assert "not complete" in message and "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    (line,) = [line for line in message.splitlines() if line.startswith("  missing")]
    assert name in line and "md5" in line


def test_a_missing_set_says_where_to_get_it(tmp_path):
    with pytest.raises(MissingData, match="CIFAR-100 is not in") as caught:
        load("cifar100", tmp_path)
    assert str(caught.value).count("\n  missing") == 3
    assert "16019d7e3df5f24257cddd939b257f8d  cifar-100-python/train" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({b"data": b"text"}, "'data' must be an array of shape .* but is bytes"),
        ({b"data": random_bytes(4, 3071)}, r"but is shape \(4, 3071\)"),
        ({b"data": random_bytes(4 * 3072)}, r"but is shape \(12288,\)"),
        ({b"data": random_bytes(0, 3072), b"labels": []}, r"but is shape \(0, 3072\)"),
        ({b"data": np.zeros((4, 3072), np.float32)}, "dtype b'f4'"),
        ({b"labels": [0, 1, 2]}, "list of 4 labels, but is 3 of them"),
        ({b"labels": b"0123"}, "list of 4 labels, but is bytes"),
        ({b"labels": [0, 1, 2, 10]}, "holds 10; labels are 0 to 9"),
        ({b"labels": [0, 1, 2, -1]}, "holds -1"),
        ({b"labels": [0, 1, 2, b"cat"]}, "holds bytes; labels are 0 to 9"),
    ],
)
def test_a_batch_of_the_wrong_shape_or_type(tmp_path, change, words):
    path = write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(Python2().dump({**cifar_batch(4, b"labels", 10), **change}))
    with pytest.raises(InvalidData, match=words) as caught:
        load("cifar10", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("names", [[b"cat"], b"cat", [b"cat"] * 9 + [7]])
def test_wrong_class_names(tmp_path, names):
    path = write_cifar10(tmp_path) / "batches.meta"
    path.write_bytes(Python2().dump({b"label_names": names}))
    with pytest.raises(InvalidData, match="list of 10 class names"):
        load("cifar10", tmp_path)


def test_a_truncated_batch(tmp_path):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InvalidData, match="test_batch is not a CIFAR file"):
        load("cifar10", tmp_path)
