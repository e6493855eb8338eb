import gzip

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data import load
from torchswat.data.fashion import read_idx
from torchswat.errors import InvalidData, MissingData

from .fabricate import idx, random_bytes, write_fashion


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "FashionMNIST"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_published_layout_packed_or_not(tmp_path, folder, packed):
    write_fashion(tmp_path, folder, packed)
    dataset = load("fashion-mnist", tmp_path)
    assert dataset.train.images.shape == (12, 1, 28, 28) and dataset.train.images.dtype == torch.uint8
    assert dataset.test.labels.shape == (5,) and dataset.test.labels.dtype == torch.int64
    np.testing.assert_array_equal(dataset.train.images[:, 0], random_bytes(12, 28, 28))
    assert dataset.classes[9] == "Ankle boot"


def test_a_missing_file_is_named_with_its_md5(tmp_path):
    (write_fashion(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData, match="missing  md5 bb300cfdad3c16e7a12a480ee83cd310") as caught:
        load("fashion-mnist", tmp_path)
    assert "https://github.com/zalandoresearch/fashion-mnist" in str(caught.value)


@given(st.integers(0, 10**6), st.booleans())
def test_every_truncation_is_noticed(tmp_path_factory, cut, packed):
    whole = idx(random_bytes(2, 28, 28))
    whole = gzip.compress(whole) if packed else whole
    path = tmp_path_factory.mktemp("cut") / ("file.gz" if packed else "file")
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(InvalidData) as caught:
        read_idx(path, (None, 28, 28), 100)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin like an IDX file"),
        (b"\x00\x00\x09\x03" + bytes(12), "00000903 instead of 00000803"),
        (idx(random_bytes(5)), "00000801 instead of 00000803"),
        (idx(random_bytes(2, 28, 27)), r"2 x 28 x 27, which is not \(1 to 100\) x 28 x 28"),
        (idx(random_bytes(0, 28, 28)), "0 x 28 x 28"),
        (idx(random_bytes(101, 28, 28)), "101 x 28 x 28"),
        (idx(random_bytes(2, 28, 28)) + b"!", "holds more"),
        (idx(random_bytes(2, 28, 28))[:-1], "must hold 1568 bytes after its header, but holds only 1567"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "4294967295 x"),
    ],
)
def test_what_is_no_such_idx_file(tmp_path, content, words):
    for name, write in {"plain": content, "packed.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(write)
        with pytest.raises(InvalidData, match=words):
            read_idx(tmp_path / name, (None, 28, 28), 100)


def test_a_gzip_that_is_none(tmp_path):
    (write_fashion(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(idx(random_bytes(12, 28, 28)))
    with pytest.raises(InvalidData, match="damaged or truncated: Not a gzipped file"):
        load("fashion-mnist", tmp_path)


def test_a_changed_byte_within_a_gzip(tmp_path):
    path = write_fashion(tmp_path) / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InvalidData, match="train-images"):
        load("fashion-mnist", tmp_path)


def test_labels_that_do_not_fit(tmp_path):
    folder = write_fashion(tmp_path, packed=False)
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.array([0, 1, 2], np.uint8)))
    with pytest.raises(InvalidData, match=r"has 5 images, but .* has 3 labels"):
        load("fashion-mnist", tmp_path)
    labels.write_bytes(idx(np.array([0, 1, 2, 3, 10], np.uint8)))
    with pytest.raises(InvalidData, match="holds the label 10; labels are 0 to 9"):
        load("fashion-mnist", tmp_path)
