"""The command ``torchswat report``: its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchswat.errors import InvalidValue
from torchswat.terminal import bar, console


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Folder with runs, figures or benchmarks (default: runs)."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """Make one self-contained HTML page of runs, reproduced figures and benchmarks.

    [dim]Examples:[/dim]
      torchswat report runs/20260102-030405-cifar-paper
      torchswat report docs/reproduction docs/results -o docs/reproduction/report.html
    """
    from torchswat.report.discover import discover
    from torchswat.report.page import make_page
    from torchswat.training.checkpoint import write_atomically

    _refuse_other_file(output)
    with bar("reading"):
        found = discover(folders or [Path("runs")])
        heading = title or ("The paper, reproduced" if found.results else "Training runs")
        write_atomically(output, make_page(found, heading).encode())
    counts = f"{len(found.results)} figures, {len(found.runs)} runs, {len(found.benchmarks)} benchmarks"
    console.print(f"{output}: {counts}.", highlight=False, markup=False)


def _refuse_other_file(path: Path) -> None:
    """Let a page replace a page, and no other file."""
    if path.is_dir():
        raise InvalidValue(f"--output is {path}, a folder: name an HTML file.")
    if path.exists() and (path.stat().st_size or not path.is_file()):
        with path.open("rb") as file:
            if not file.read(15).lower().startswith(b"<!doctype html"):
                raise InvalidValue(f"--output is {path}, which is no HTML page: it would be overwritten.")
