"""The data sets by name: one list that loading, listing, checking and the tests are made from."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from torchswat.data.cifar import CIFAR10, CIFAR100
from torchswat.data.dataset import Dataset
from torchswat.data.digits import DIGITS
from torchswat.data.fashion import FASHION
from torchswat.data.folder import IMAGENET, read_folder
from torchswat.data.source import Source
from torchswat.data.synthetic import SYNTHETIC
from torchswat.errors import InvalidData, InvalidValue, MissingData, MissingDependency, UnknownName

SOURCES = {source.name: source for source in (DIGITS, FASHION, CIFAR10, CIFAR100, IMAGENET, SYNTHETIC)}
ROOT_VARIABLE = "TORCHSWAT_DATA"


def names() -> tuple[str, ...]:
    """List the names of the data sets.

    Examples
    --------
    >>> names()
    ('digits', 'fashion-mnist', 'cifar10', 'cifar100', 'imagenet', 'synthetic')
    """
    return tuple(SOURCES)


def info(name: str) -> Source:
    """Get the row of the registry for a data set: title, summary, expected files, official page.

    Raises
    ------
    UnknownName
        No data set has that name.

    Examples
    --------
    >>> info("cifar10").page
    'https://www.cs.toronto.edu/~kriz/cifar.html'
    """
    if name not in SOURCES:
        raise UnknownName.of("data set", name, SOURCES)
    return SOURCES[name]


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Find the folder that holds the data sets: `root`, else ``$TORCHSWAT_DATA``, else ``data`` here."""
    path = Path(root or os.environ.get(ROOT_VARIABLE) or "data")
    try:
        return path.expanduser()
    except RuntimeError:
        raise InvalidValue(f"the data root is {path}: there is no such user on this machine.") from None


def load(name: str = "digits", root: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a data set by name, or any folder of images by its path.

    Nothing is ever downloaded: the files are expected as their publishers pack them.

    Parameters
    ----------
    name : str, default "digits"
        One of `names`, or the path (absolute, or below `root`) of a folder with ``train/<class>/<image>``
        and ``val/<class>/<image>``.
    root : path, optional
        The folder that holds the data sets; by default the one that the environment variable
        TORCHSWAT_DATA names, else ``data`` in the current folder.
    **options
        For folders of images and imagenet: `size` and `resize`, in pixels, default 224 and 256 (see
        `CentreCrop`). For synthetic: `shape`, `classes`, `train`, `test`, `seed`.

    Returns
    -------
    Dataset

    Raises
    ------
    UnknownName
        No data set and no folder has that name.
    MissingData
        Files are not there; the message lists them with their md5 and says where to get them.
    InvalidData
        A file is damaged, truncated or not what it should be. A file that is sound but differs from the
        official one (a subset, say) is no error: see `check`.
    InvalidValue
        An option that this data set does not take, or a value outside what is allowed.
    MissingDependency
        scikit-learn (digits) or Pillow (folders of images) is not installed.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.train.labels.dtype
    (torch.Size([1442, 1, 8, 8]), torch.int64)
    """
    folder = data_root(root)
    if name in SOURCES:
        source = SOURCES[name]
        _check_options(name, source.read, options)
        return source.read(folder, **options)
    if name and (folder / name).expanduser().is_dir():
        _check_options(name, read_folder, options)
        return read_folder((folder / name).expanduser(), **options)
    unknown = UnknownName.of("data set", name, SOURCES)
    raise UnknownName(f"{unknown} Nor is there a folder of images {folder / name}.")


def _check_options(name: str, read, options: dict[str, object]) -> None:
    allowed = list(inspect.signature(read).parameters)[1:]
    kinds = get_type_hints(read)
    for option, value in options.items():
        if option not in allowed:
            raise InvalidValue(
                f"data set {name!r} takes no option {option!r}; it takes {', '.join(allowed) or 'none'}."
            )
        if kinds[option] is int and not _is_integer(value):
            raise InvalidValue(f"data set {name!r} with {option} = {value!r:.60}: it must be an integer.")
        if kinds[option] is not int and not (
            isinstance(value, list | tuple) and all(map(_is_integer, value))
        ):
            raise InvalidValue(f"data set {name!r} with {option} = {value!r:.60}: it must be integers.")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def state(name: str, root: str | os.PathLike[str] | None = None) -> Literal["built in", "found", "missing"]:
    """Return whether the files of a data set are there, by their names alone.

    Raises
    ------
    UnknownName
        No data set has that name.

    Examples
    --------
    >>> state("digits")
    'built in'
    """
    source, folder = info(name), data_root(root)
    if not source.page:
        return "built in"
    there = not source.missing(folder) if source.files else (folder / name).is_dir()
    return "found" if there else "missing"


@dataclass(frozen=True)
class Status:
    """What `check` found.

    Attributes
    ----------
    name : str
    state : str
        "built in"; "official" (every file has the official md5); "sound" (complete and readable, but not,
        or not known to be, the official files); "damaged"; "missing".
    detail : str
        What is wrong or different, in words; empty for official and built-in sets.
    """

    name: str
    state: Literal["built in", "official", "sound", "damaged", "missing"]
    detail: str = ""


def check(name: str, root: str | os.PathLike[str] | None = None) -> Status:
    """Find out whether a data set is there, complete, readable, and the official one.

    Reads every byte of it (folders of images: lists them, decodes none), which takes seconds.

    Parameters
    ----------
    name : str
        One of `names`.
    root : path, optional
        As for `load`.

    Raises
    ------
    UnknownName
        No data set has that name.

    Examples
    --------
    >>> check("synthetic").state
    'built in'
    """
    source, folder = info(name), data_root(root)
    absent = source.missing(folder)
    if absent:
        return Status(name, "missing", f"not in {folder}: {', '.join(absent)}")
    different = [file.name for file in source.files if not file.is_official(folder)]
    if source.files and not different:
        return Status(name, "official")
    try:
        dataset = source.read(folder)
    except MissingDependency as error:
        return Status(name, "missing", str(error))
    except MissingData:
        return Status(name, "missing", f"not in {folder}")
    except InvalidData as error:
        return Status(name, "damaged", str(error))
    if not source.page:
        return Status(name, "built in")
    detail = f"{len(dataset.train)} + {len(dataset.test)} images"
    if different:
        detail += f"; md5 not the official one: {', '.join(different)}"
    return Status(name, "sound", detail)
