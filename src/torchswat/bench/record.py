"""What a result carries: its rows, and the circumstances without which no figure can be believed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torchswat.engine import info
from torchswat.engine.allocator import tune_allocator
from torchswat.errors import InvalidValue
from torchswat.files import write_atomically
from torchswat.training.run_folder import versions

_SETTINGS = (
    "TORCHSWAT_",
    "ONEDNN_",
    "ATEN_",
    "MKL_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MALLOC_",
    "THP_",
    "LD_PRELOAD",
)
"""Beginnings of the names of environment variables that change a speed."""
_PLACES = ("TORCHSWAT_DATA",)  # change none, and are nobody's business

DRAWINGS = {"products", "step", "roofline", "memory", "file"}
"""The benchmarks that are also drawn, as SVG and PNG beside their file."""

Row = dict[str, Any]
"""Numbers and words by name; under ``samples`` the raw milliseconds of each contestant."""


@dataclass(frozen=True)
class Record:
    """One benchmark as it was run.

    Attributes
    ----------
    benchmark : str
        ``products``, ``step``, ``roofline``, ``programs``, ``selection``, ``inference``, ``memory`` or ``file``.
    circumstances : dict
        Hardware, software, settings, seed, repeats.
    rows : list of dict
        One measured comparison each.
    summary : list of dict
        What the rows come to, where that can be said in a line each.
    remarks : list of str
        What was left out, and why.
    """

    benchmark: str
    circumstances: Row
    rows: list[Row]
    summary: list[Row]
    remarks: list[str]

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically, into a folder that is made where needed."""
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def refuse_other_file(path: Path, benchmark: str) -> None:
    """Let a result, and its drawings, replace what the same benchmark wrote before, and no other file.

    Raises
    ------
    InvalidValue
        For a folder, a name that a drawing gets, or a file that would be lost.
    """
    drawings = [path.with_suffix(suffix) for suffix in (".svg", ".png")] if benchmark in DRAWINGS else []
    if path.is_dir():
        raise InvalidValue(f"--output is {path}, a folder: name a JSON file.")
    if path in drawings:
        raise InvalidValue(f"--output is {path}, where a drawing goes: name a JSON file.")
    if path.exists():
        if (path.stat().st_size or not path.is_file()) and _benchmark_of(path) != benchmark:
            command = "benchmark" if benchmark == "file" else f"bench {benchmark}"
            raise InvalidValue(
                f"--output is {path}, which is no result of `{command}`: it would be overwritten."
            )
        return
    for drawing in drawings:
        if drawing.exists():
            raise InvalidValue(
                f"--output is {path}: {drawing}, which is there already, would be overwritten."
            )


def _benchmark_of(path: Path) -> str | None:
    """Return which benchmark wrote the file, or None where none did."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    keys = {field.name for field in fields(Record)}
    return found["benchmark"] if isinstance(found, dict) and found.keys() == keys else None


def circumstances(seed: int, repeats: int) -> Row:
    """Return what a measured time depends on; tunes the allocator, which all contestants share.

    Examples
    --------
    >>> {"torch", "threads", "git_commit", "processor", "repeats"} <= set(circumstances(seed=0, repeats=3))
    True
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **versions(),
        "engine": info(),
        "allocator_tuned": tune_allocator(),
        "load": _load(),
        "environment": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(_SETTINGS) and k not in _PLACES
        },
        "seed": seed,
        "repeats": repeats,
    }


def _load() -> float | None:
    """Return how many processes wanted a core over the last minute, before this benchmark ran."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
