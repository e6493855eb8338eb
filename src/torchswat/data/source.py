"""Where a data set comes from: the files it is made of, their official md5, and the page that offers them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchswat.errors import MissingData

if TYPE_CHECKING:
    from torchswat.data.dataset import Dataset


@dataclass(frozen=True)
class File:
    """One expected file.

    Attributes
    ----------
    places : mapping of str to str
        The paths below the data root under which it may lie (e.g. packed and unpacked), each with the md5
        of its official content; the first is the one that messages ask for.
    """

    places: Mapping[str, str]

    @property
    def name(self) -> str:
        """The path that messages ask for."""
        return next(iter(self.places))

    def find(self, root: Path) -> Path | None:
        """Find the file below `root`; None where it is in no place."""
        return next((root / place for place in self.places if (root / place).is_file()), None)

    def is_official(self, root: Path) -> bool:
        """Whether the file is there with the md5 of the official one."""
        path = self.find(root)
        return path is not None and md5(path) == self.places[path.relative_to(root).as_posix()]


@dataclass(frozen=True)
class Source:
    """A row of the registry.

    Attributes
    ----------
    name : str
        What `load` calls it.
    title, summary : str
        Its proper name; its size in words.
    read : callable
        From the data root (and keyword options) to the `Dataset`.
    files : tuple of File
        What it is made of; empty for sets that are built in and for folders of images.
    page : str
        The official page; empty for sets that are built in.
    advice : str
        What to fetch there and where to put it.
    """

    name: str
    title: str
    summary: str
    read: Callable[..., Dataset]
    files: tuple[File, ...] = ()
    page: str = ""
    advice: str = ""

    def locate(self, root: Path) -> list[Path]:
        """Find every file of the set.

        Raises
        ------
        MissingData
            At least one is not there; the message says which, and how to get the set.
        """
        found = [file.find(root) for file in self.files]
        paths = [path for path in found if path is not None]
        if len(paths) < len(found):
            raise MissingData(self.how_to_get(root))
        return paths

    def missing(self, root: Path) -> list[str]:
        """List the files that are not below `root`."""
        return [file.name for file in self.files if file.find(root) is None]

    def how_to_get(self, root: Path) -> str:
        """Say what is missing below `root`, where to get it and where to put it."""
        missing = set(self.missing(root))
        partly = 0 < len(missing) < len(self.files)
        lines = [f"{self.title} is {'not complete' if partly else 'not'} in {root}."]
        lines += [f"Nothing is downloaded silently. From {self.page} get it yourself: {self.advice}."]
        lines += [
            f"  {'missing' if file.name in missing else 'found  '}  md5 {file.places[file.name]}  {file.name}"
            for file in self.files
        ]
        lines += ["Data elsewhere? Name its folder: the argument `root`, or the variable TORCHSWAT_DATA."]
        return "\n".join(lines)


def md5(path: Path) -> str:
    """Compute the md5 of a file, in hexadecimal: to recognise the official files, not for security."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
