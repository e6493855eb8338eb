"""The Python examples of README.md run, one after another, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text: str) -> list[str]:
    """The fenced blocks marked ``python``, each on the line it has in `text` (for tracebacks)."""
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in blocks]


def run_blocks(text: str, name: str) -> dict[str, object]:
    """Execute the Python blocks of `text` in one namespace, which is returned."""
    namespace: dict[str, object] = {"__name__": "__readme__"}
    for block in python_blocks(text):
        exec(compile(block, name, "exec"), namespace)
    return namespace


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example that writes a file writes it there
    namespace = run_blocks(README.read_text(), str(README))
    assert "torchswat" in namespace, "README.md shows no Python that imports torchswat"


def test_later_blocks_see_earlier_ones_and_other_languages_are_left_out():
    text = "Say\n```python\nx = 1\n```\nthen\n```console\nx = 5\n```\nand\n```python\ny = x + 1\n```\n"
    namespace = run_blocks(text, "text")
    assert (namespace["x"], namespace["y"]) == (1, 2)


def test_an_example_that_fails_fails_with_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("one\ntwo\n```python\n\n1 / 0\n```\n", "text")
    assert caught.traceback[-1].lineno + 1 == 5
