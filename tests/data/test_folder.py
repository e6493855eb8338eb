import shutil

import pytest

from torchswat.data import Batches, CentreCrop, RandomResizedCrop, load
from torchswat.errors import InvalidData, InvalidValue, MissingData

from .fabricate import write_pictures


def test_a_folder_below_the_root_or_anywhere(tmp_path):
    folder = write_pictures(tmp_path / "pets")
    for dataset in load("pets", tmp_path), load(str(folder)):
        assert dataset.name == "pets" and dataset.classes == ("cat", "dog")
        assert len(dataset.train) == 6 and len(dataset.test) == 4
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert dataset.train.paths[4] == folder / "train" / "dog" / "1.jpg"
        assert dataset.shape == (3, 224, 224) and dataset.augmentation == RandomResizedCrop()


def test_the_size_is_an_option(tmp_path):
    dataset = load(str(write_pictures(tmp_path / "pets")), size=24, resize=32)
    assert dataset.train.view == CentreCrop(32, 24)
    ((images, _),) = Batches(dataset.test, 4)
    assert images.shape == (4, 3, 24, 24)
    with pytest.raises(InvalidValue, match="size is 64 and resize is 32"):
        load(str(tmp_path / "pets"), size=64, resize=32)


def test_imagenet_is_such_a_folder(tmp_path):
    write_pictures(tmp_path / "imagenet")
    assert load("imagenet", tmp_path).name == "imagenet"


def test_a_missing_imagenet_says_where_to_get_it(tmp_path):
    with pytest.raises(MissingData, match=r"ImageNet .* is not in") as caught:
        load("imagenet", tmp_path)
    assert "https://www.image-net.org/download.php" in str(caught.value)
    assert "1d675b47d978889d74fa0da5fadfb00e" in str(caught.value)


def test_other_files_are_ignored(tmp_path):
    folder = write_pictures(tmp_path / "pets")
    for name in (
        "README.txt",
        "train/notes.md",
        "train/cat/notes.txt",
        "val/dog/.hidden.jpg",
        "val/dog/0.gif",
    ):
        (folder / name).write_text("not a picture")
    (folder / "train" / ".cache").mkdir()
    shutil.copy(folder / "train/cat/0.jpg", folder / "train/cat/UPPER.JPEG")
    dataset = load(str(folder))
    assert len(dataset.train) == 7 and len(dataset.test) == 4
    assert dataset.classes == ("cat", "dog")


@pytest.mark.parametrize(
    "name, text, classes",
    [
        ("classes.txt", "0 n2 great white shark\n1 n1 tench\n", ("tench", "great white shark", "n3")),
        ("LOC_synset_mapping.txt", "n1 crane\nn2 drake\nn3 crane\n", ("crane (n1)", "drake", "crane (n3)")),
        ("classes.txt", "cat\ndog\n\n7\nn1\nn4 of another set\n", ("n1", "n2", "n3")),
    ],
)
def test_a_file_may_say_how_the_classes_are_called(tmp_path, name, text, classes):
    folder = write_pictures(tmp_path / "pets", classes=("n1", "n2", "n3"))
    (folder / name).write_text(text)
    dataset = load(str(folder))
    assert dataset.classes == classes == dataset.test.classes
    assert [path.parent.name for path in dataset.train.paths[::3]] == ["n1", "n2", "n3"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_that_is_not_there(tmp_path, part):
    folder = write_pictures(tmp_path / "pets")
    shutil.rmtree(folder / part)
    with pytest.raises(MissingData, match=f"{part} is not there"):
        load(str(folder))


def test_a_part_without_classes(tmp_path):
    folder = write_pictures(tmp_path / "pets", classes=())
    (folder / "train").mkdir(parents=True)
    with pytest.raises(InvalidData, match="train holds no class folders"):
        load(str(folder))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_pictures(tmp_path, part):
    folder = write_pictures(tmp_path / "pets")
    for path in (folder / part / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(InvalidData, match=f"{part}.dog holds no images"):
        load(str(folder))


def test_classes_that_differ(tmp_path):
    folder = write_pictures(tmp_path / "pets")
    shutil.copytree(folder / "val" / "dog", folder / "val" / "wolf")
    with pytest.raises(InvalidData, match="same class folders, but 1 are in one of them only: wolf"):
        load(str(folder))


@pytest.mark.parametrize("where", [0, 5])
def test_a_damaged_picture_is_named_when_it_is_read(tmp_path, where):
    dataset = load(str(write_pictures(tmp_path / "pets")))
    damaged = dataset.train.paths[where]
    damaged.write_bytes(damaged.read_bytes()[:400])
    with pytest.raises(InvalidData) as caught:
        for _ in Batches(dataset.train, 2):
            pass
    assert str(damaged) in str(caught.value)
