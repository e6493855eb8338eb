"""Where commands print: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from torchswat.progress import Progress

console = Console(soft_wrap=True)
messages = Console(stderr=True, soft_wrap=True)


@contextmanager
def bar(title: str, where: Console = messages) -> Iterator[Progress]:
    """Show a progress bar with the time left, where `where` is a terminal, and yield what moves it.

    Until the first report the bar pulses: how much there is to do is not known yet.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    shown = Bar(
        *(*columns, TextColumn("ends in"), TimeRemainingColumn()),
        console=where,
        transient=True,
        disable=not where.is_terminal,
    )
    with shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def print_json(values: Any) -> None:
    """Print plain values as JSON on standard output."""
    print(json.dumps(values, indent=2))


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows that share their keys, as a table or as JSON."""
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int) else "left")
    for row in rows:
        table.add_row(*[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()])
    console.print(table)
