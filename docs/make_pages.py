"""What the pages under docs/reference say of commands, recipes, networks and algorithms, made from the package.

``python docs/make_pages.py`` writes each table below its mark; ``--check`` says which page is out of date instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import typer

from torchswat.algorithms import ALGORITHMS
from torchswat.cli import app
from torchswat.files import write_atomically
from torchswat.models.registry import MODELS
from torchswat.training.recipe import load_recipe, recipe_names

FOLDER = Path(__file__).parent / "reference"
MARK = "<!-- below: made by docs/make_pages.py -->"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def algorithms() -> str:
    """Return the rows of `torchswat.algorithms.ALGORITHMS`."""
    rows = []
    for row in ALGORITHMS.values():
        selected = [f"{slot.replace('_', ' ')}: {how}" for slot, how in row.slots().items() if how]
        rows.append([f"`{row.name}`", row.summary, "; ".join(selected) or "–", row.source])
    return _table(["name", "what it does", "selected operands", "source"], rows)


def models() -> str:
    """Return the networks of the registry."""
    rows = [[f"`{m.name}`", m.form, f"{m.parameters:,}", m.summary] for m in MODELS]
    return _table(["name", "form", "parameters", "what it is"], rows)


def recipes() -> str:
    """Return the recipes that come with the package."""
    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append([f"`{name}`", recipe.about, recipe.model.name, recipe.data.name, recipe.optimizer.epochs])
    return _table(["name", "what it is", "network", "data", "epochs"], rows)


def commands() -> str:
    """Return every command with its help and options."""
    root = typer.main.get_command(app)
    return "\n".join(
        part for path, command in _walk(root, "torchswat") for part in _section(path, command)
    ).strip()


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(child, f"{path} {name}")


def _section(path: str, command: click.Command) -> Iterator[str]:
    if " " in path:
        yield f"## {path}\n"
    yield _plain(command.help or "") + "\n"
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    if shown and " " in path:
        yield _table(
            ["option", "meaning"], [[f"`{_spelt(p)}`", _plain(getattr(p, "help", "") or "")] for p in shown]
        )
        yield ""


def _spelt(parameter: click.Parameter) -> str:
    """Return an option's names, or what stands for an argument."""
    if parameter.param_type_name == "option":
        return "`, `".join([*parameter.opts, *parameter.secondary_opts])
    return str(getattr(parameter, "metavar", None) or parameter.name).upper()


def _plain(text: str) -> str:
    """Return a help text as Markdown: its markup taken out, indented lines as a block of code."""
    text = re.sub(r"\[/?[a-z ]+\]", "", text).replace("\b", "").replace("<", "&lt;")
    lines: list[str] = []
    for line in text.splitlines():
        indented = line.startswith("  ")
        if indented and lines and lines[-1] and not lines[-1].startswith("    "):
            lines.append("")
        lines.append("    " + line.strip() if indented else line.strip())
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "algorithms": algorithms,
    "command-line": commands,
    "models": models,
    "recipes": recipes,
}


def page(name: str) -> str:
    """Return a page as it should be: its text down to the mark, and what is made."""
    head, mark, _ = (FOLDER / f"{name}.md").read_text().partition(MARK)
    if not mark:
        raise SystemExit(f"{FOLDER / name}.md has no line {MARK}")
    return f"{head}{MARK}\n\n{PAGES[name]()}\n"


def main() -> None:
    """Write or check every page."""
    old = [name for name in PAGES if page(name) != (FOLDER / f"{name}.md").read_text()]
    if "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(old)}; run python docs/make_pages.py" if old else 0)
    for name in old:
        write_atomically(FOLDER / f"{name}.md", page(name).encode())


if __name__ == "__main__":
    main()
