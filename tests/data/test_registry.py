import subprocess
import sys
from pathlib import Path

import pytest

from torchswat.data import check, data_root, info, load, names
from torchswat.errors import InvalidValue, MissingData, MissingDependency, UnknownName

from .fabricate import write_cifar10, write_cifar100, write_fashion, write_pictures


def write_all(root: Path) -> None:
    write_cifar10(root)
    write_cifar100(root)
    write_fashion(root)
    write_pictures(root / "imagenet")


@pytest.mark.parametrize("name", names())
def test_every_set_honours_the_contract(tmp_path, name):
    write_all(tmp_path)
    dataset = load(name, tmp_path)
    assert dataset.name == name
    for split in dataset.train, dataset.test:
        assert len(split) == len(split.labels) > 0
        assert split.shape == dataset.shape and split.classes == dataset.classes
        assert split.labels.min() >= 0 and split.labels.max() < len(dataset.classes)
        assert len(split.mean) == len(split.std) == split.shape[0]
        assert all(0 < value < 1 for value in (*split.mean, *split.std))


@pytest.mark.parametrize("name", names())
def test_every_set_can_be_described(name):
    source = info(name)
    assert source.name == name and source.title and source.summary
    assert bool(source.page) == bool(source.advice)
    assert all(len(md5) == 32 for file in source.files for md5 in file.places.values())


@pytest.mark.parametrize("name", ["cifar1O", "", "nothing-like-it", "/no/such/folder"])
def test_an_unknown_name(tmp_path, name):
    with pytest.raises(UnknownName, match=r"unknown data set .*Known: digits, fashion-mnist"):
        load(name, tmp_path)


def test_the_nearest_name_is_offered():
    with pytest.raises(UnknownName, match="did you mean 'cifar10'"):
        info("cifar-10")


@pytest.mark.parametrize(
    ("name", "allowed"), [("digits", "none"), ("synthetic", "shape, classes"), ("pets", "size")]
)
def test_an_unknown_option(tmp_path, name, allowed):
    write_pictures(tmp_path / "pets")
    with pytest.raises(InvalidValue, match=f"{name!r} takes no option 'colour'; it takes {allowed}"):
        load(name, tmp_path, colour="red")


def test_the_root_is_the_argument_or_the_variable_or_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSWAT_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("elsewhere") == Path("elsewhere")
    assert data_root("~/sets") == Path.home() / "sets"
    write_fashion(tmp_path)
    assert len(load("fashion-mnist").train) == 12
    monkeypatch.delenv("TORCHSWAT_DATA")
    assert data_root() == Path("data")
    monkeypatch.chdir(tmp_path / "FashionMNIST")
    with pytest.raises(MissingData, match="is not in data"):
        load("fashion-mnist")


def test_check_tells_what_is_there(tmp_path):
    expected = {"digits": "built in", "synthetic": "built in"}
    assert {name: check(name, tmp_path).state for name in names()} == {
        name: expected.get(name, "missing") for name in names()
    }
    write_all(tmp_path)
    assert {name: check(name, tmp_path).state for name in names()} == {
        name: expected.get(name, "sound") for name in names()
    }
    status = check("cifar100", tmp_path)
    assert "6 + 6 images" in status.detail and "cifar-100-python/train" in status.detail


def test_check_finds_damage_and_gaps(tmp_path):
    write_all(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"")
    assert check("cifar10", tmp_path).state == "damaged"
    assert "data_batch_3" in check("cifar10", tmp_path).detail
    (tmp_path / "cifar-100-python/meta").unlink()
    assert check("cifar100", tmp_path).state == "missing"
    assert check("cifar100", tmp_path).detail.endswith("cifar-100-python/meta")


@pytest.mark.parametrize("module", ["sklearn", "PIL"])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, module):
    write_pictures(tmp_path / "pets")
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=r"pip install \"torchswat\[train\]\""):
        if module == "sklearn":
            load("digits")
        else:
            data = load("pets", tmp_path).train
            data.read(data.labels[:1], None, data.labels[:0].numpy(), map)


def test_importing_needs_neither_pillow_nor_scikit_learn():
    command = "import sys, torchswat.data; sys.exit(bool({'PIL', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
