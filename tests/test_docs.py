"""Every code block of README.md and of the pages under docs/ runs, as a reader would type it, page by page.

A page's blocks run in their order, in one empty folder: ``python`` blocks in one namespace, ``sh`` blocks in bash. A
block that another check runs names it in the line before: ``<!-- run by: tests/test_packaging.py -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import torchswat

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(
    r"(?:^<!-- run by: (?P<elsewhere>\S+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)
_SHOWN = {"text", "yaml", "json", "csv", "console", ""}
"""What is shown and not typed: outputs, files, drawings."""
_LONG = {"reproduction/README.md": "days of training", "how-to/clusters.md": "clusters"}
"""Pages whose commands need what a test has not; how-to pages of clusters say themselves what was checked."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and which other check runs it."""

    language: str
    text: str
    line: int
    elsewhere: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = []
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines(keepends=True)]
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(match["language"], "".join(lines), line, match["elsewhere"]))
    return found


def run_python(block: Block, namespace: dict[str, object], name: str) -> None:
    """Execute a block, with its line numbers of the page in tracebacks."""
    exec(compile("\n" * block.line + block.text, name, "exec"), namespace)


def run_shell(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in bash; the first command that fails ends it."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-e", "-m", "-c", block.text],
        cwd=folder,
        env={**os.environ, "PATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_blocks(text: str, name: str, folder: Path) -> dict[str, object]:
    """Run all blocks of a page that no other check runs, and return the namespace of its Python."""
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks_of(text):
        if block.elsewhere is not None or block.language in _SHOWN:
            continue
        if block.language == "python":
            run_python(block, namespace, name)
        else:
            done = run_shell(block, folder)
            assert done.returncode == 0, (
                f"{name}, line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
            )
    return namespace


def pages_with_blocks() -> list[Path]:
    return [
        page
        for page in PAGES
        if str(page.relative_to(ROOT / "docs" if ROOT / "docs" in page.parents else ROOT)) not in _LONG
        and any(block.language in ("python", "sh") for block in blocks_of(page.read_text()))
    ]


# Lightning's own warnings, on its page alone.
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("page", pages_with_blocks(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    text = page.read_text()
    if "import lightning" in text:
        pytest.importorskip(
            "lightning", reason="the extra lightning is not installed; make test-all installs it"
        )
    monkeypatch.chdir(tmp_path)  # an example that writes a file writes it there
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "plan.json"))  # `tune` measures for the page alone
    run_blocks(text, str(page), tmp_path)


def test_every_block_has_a_language_that_says_whether_it_runs():
    for page in PAGES:
        odd = {block.language for block in blocks_of(page.read_text())} - {"python", "sh", *_SHOWN}
        assert not odd, f"{page}: {odd}"


def test_a_block_that_is_run_elsewhere_names_a_file_that_is_there():
    named = {block.elsewhere for page in PAGES for block in blocks_of(page.read_text()) if block.elsewhere}
    assert named and all((ROOT / name).is_file() for name in named), named


def test_readme_shows_python_and_commands():
    languages = {block.language for block in blocks_of((ROOT / "README.md").read_text())}
    assert {"python", "sh"} <= languages


def test_later_blocks_see_earlier_ones_and_outputs_are_left_out(tmp_path):
    text = (
        "```python\nx = 1\n```\nthen\n```text\nx = 5\n```\n1. item\n\n    ```python\n    y = x + 1\n    ```\n"
    )
    namespace = run_blocks(text, "text", tmp_path)
    assert (namespace["x"], namespace["y"]) == (1, 2)


def test_an_example_that_fails_fails_with_its_line(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("one\ntwo\n```python\n\n1 / 0\n```\n", "text", tmp_path)
    assert caught.traceback[-1].lineno + 1 == 5


def test_a_command_that_fails_fails_with_its_block(tmp_path):
    with pytest.raises(AssertionError, match="no-such-file"):
        run_blocks("```sh\nls no-such-file\ntrue\n```\n", "text", tmp_path)


def test_a_block_that_another_check_runs_is_left_out(tmp_path):
    run_blocks("<!-- run by: tests/x.py -->\n```sh\nfalse\n```\n", "text", tmp_path)


# ---- the site ----------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    named = set(re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents}
    assert named == pages


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: torchswat\.(\S+)$", reference, flags=re.MULTILINE))
    inside = {"algorithms", "models", "schedules"}  # modules, of which the reference shows what they hold
    missing = {name for name in torchswat.__all__ if name not in shown} - inside
    assert not missing, missing
    assert all(any(name.startswith(f"{module}.") for name in shown) for module in inside)


def test_made_tables_and_drawings_are_up_to_date(tmp_path):
    run = [sys.executable, str(ROOT / "docs" / "make_pages.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = [sys.executable, str(ROOT / "docs" / "draw_concepts.py"), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = sorted(tmp_path.glob("*.svg"))
    assert drawn
    for path in drawn:
        committed = ROOT / "docs" / "images" / "concepts" / path.name
        assert path.read_text() == committed.read_text(), (
            f"{committed} is out of date: python docs/draw_concepts.py"
        )
