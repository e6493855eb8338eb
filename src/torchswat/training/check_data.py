"""The data of a run, the same whenever it is continued: broken image files out, the rest as recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from torchswat.data import Dataset, Pictures
from torchswat.data.unreadable import find_unreadable, leave_out
from torchswat.errors import InvalidData
from torchswat.training.build import build_data
from torchswat.training.processes import state
from torchswat.training.recipe import Recipe

_SHOWN = 20  # broken files that an error names


def data_of_run(
    recipe: Recipe, console: Console, record: dict[str, Any] | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Load the data set of a run without the broken image files that its recipe lets it leave out.

    The processes of a training share the files among them; all must call it.

    Parameters
    ----------
    recipe : Recipe
    console : Console
        Shows a bar while image files are decoded.
    record : dict, optional
        What was returned when the run began. It decides which files are left out, and none is decoded.

    Returns
    -------
    Dataset
    dict
        The record to keep: number of images and checksum of each split, and the files left out.

    Raises
    ------
    InvalidData
        Image files are broken and the recipe does not leave them out, or the data differ from the record.
    """
    dataset = build_data(recipe)
    if record is None:
        broken = {} if recipe.data.broken_images == "unchecked" else _check(dataset, console)
        if broken and recipe.data.broken_images == "stop":
            raise InvalidData(_list_broken(list(broken.values())))
        left_out: Collection[Path] = broken
        if broken:
            console.print(f"note: {len(broken)} broken image files are left out", highlight=False)
    else:
        left_out = _recorded(dataset, record)
    dataset = _without(dataset, left_out, ("train", "test"))
    now = {
        "data": dataset.name,
        "train": _describe(dataset.train),
        "test": _describe(dataset.test),
        "left_out": sorted(_short_name(path) for path in left_out),
    }
    if record is not None and any(record.get(split) != now[split] for split in ("train", "test")):
        raise InvalidData(
            f"the data set {recipe.data.name!r} has changed since the run began: "
            f"{_sizes(record)} then, {_sizes(now)} now. Bring back the files of then; "
            "a run on other data needs a folder of its own."
        )
    return dataset, record or now


def data_to_test(recipe: Recipe) -> Dataset:
    """Load the data set of a recipe to evaluate on, without the broken test images that it skips."""
    dataset = build_data(recipe)
    if recipe.data.broken_images == "skip" and isinstance(dataset.test, Pictures):
        dataset = _without(dataset, find_unreadable(dataset.test.paths), ("test",))
    return dataset


def _check(dataset: Dataset, console: Console) -> dict[Path, str]:
    """Decode all image files, with a bar on a terminal; return the broken ones with their problems."""
    paths = [path for split in _splits_of_files(dataset) for path in split.paths]
    if not paths:
        return {}
    processes = state()
    mine = paths[processes.process_index :: processes.num_processes]
    columns = (TextColumn("checking images"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=len(mine))
        broken = find_unreadable(mine, lambda count: bar.advance(task, count))
    if processes.num_processes > 1:
        broken = {path: problem for each in gather_object([broken]) for path, problem in each.items()}
    console.print(f"{len(paths)} image files checked, {len(broken)} broken", highlight=False)
    return dict(sorted(broken.items()))


def _list_broken(problems: Sequence[str]) -> str:
    lines = [f"{len(problems)} image file(s) cannot be read:"]
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    lines += [f"  and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
    lines += ["--skip-broken leaves them out (in a recipe: data.broken_images: skip)."]
    return "\n".join(lines)


def _without(dataset: Dataset, paths: Collection[Path], splits: Sequence[str]) -> Dataset:
    if not paths:
        return dataset
    return dataclasses.replace(dataset, **{name: leave_out(getattr(dataset, name), paths) for name in splits})


def _recorded(dataset: Dataset, record: dict[str, Any]) -> set[Path]:
    """The files of the data set that the record names as left out."""
    names = record.get("left_out", [])
    names = set(names) if isinstance(names, list) else set()
    return {path for split in _splits_of_files(dataset) for path in split.paths if _short_name(path) in names}


def _splits_of_files(dataset: Dataset) -> list[Pictures]:
    return [split for split in (dataset.train, dataset.test) if isinstance(split, Pictures)]


def _short_name(path: Path) -> str:
    """Part, class and file: the path below the folder of the data set, which may move."""
    return "/".join(path.parts[-3:])


def _describe(split: Any) -> dict[str, int]:
    return {"images": len(split), "crc32": split.checksum()}


def _sizes(record: dict[str, Any]) -> str:
    sizes = [record[part] if isinstance(record.get(part), dict) else {} for part in ("train", "test")]
    return " + ".join(f"{each.get('images')} images (checksum {each.get('crc32')})" for each in sizes)
