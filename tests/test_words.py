"""Phrases that the package does not use: the field has words for what they mean (the glossary says which)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEARCHED = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "src").rglob("*.yaml")),
    *sorted((ROOT / "src").rglob("*.html")),
    *sorted((ROOT / "src").rglob("*.cpp")),
    *sorted((ROOT / "src").rglob("*.h")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.*")),
    *sorted(ROOT.glob("*.md")),
]

PHRASES = {
    r"\bwait(s|ing)? for the backward": "saved for backward",
    r"\b(kept|keeps?) for the backward": "saved for backward",
    r"\brooms? of\b|\bhouses?\b|\bof this room\b": "package, layer",
    r"(?<![`'\"._])\b(a|the|of|folders? of|many|picture) pictures?\b(?![`'\"._])": "image",
    r"\b\d+ pictures\b": "batch size",
    r"\bgains? \d": "speedup",
    r"\btells? whether\b": "return whether",
    r"\bhand(s|ed)? (it |them )?back\b": "scatter",
    r"\bb(ring|rought) (\w+ )?into the layout": "convert to",
    r"\bNeighbour[A-Z]|\bneighbours\.py|\b(join|separate)_\(|\bawaits\b|\brectifies\(": "fused modules",
    r"\bPending\b|\b_Promise\b|\bpromises?\b": "placeholder",
    r"`Marks`|\bclass Marks\b|\blean\b": "kernel statistics; deferred",
    r"\bcan be computed from again\b|\bOrigin\b": "recompute",
    r"\bbatch-innermost\b|\b(is|to|empty)_inner\b": "CHWN layout",
    r"\bDesk\b|\bsome\(\)|\brest\(\)": "ThreadWorkspace, pack_some, pack_remaining",
    r"\bbits alike\b|\bnumbers alike\b": "bitwise equal",
    r"\bnever by hope\b": "autotuning",
    r"\bnobody reads\b": "unused",
    r"\bknows? nothing of\b": "independent of, without",
    r"\bhears of\b|\bis told (of|the)\b": "is called with",
    r"\b[Ss]hare set to zero\b": "sparsity: fraction of entries set to zero",
}


def found(text: str) -> list[str]:
    """The phrases in a text, each with what to say instead."""
    return [
        f"{match.group(0)!r}: say {better!r}"
        for phrase, better in PHRASES.items()
        for match in re.finditer(phrase, text)
    ]


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_of_the_field(path):
    assert found(path.read_text(encoding="utf-8")) == []


def test_phrases_are_found_where_they_are():
    assert len(SEARCHED) > 150
    text = "It tells whether folders of pictures are what waits for the backward pass, with 16 pictures."
    assert len(found(f"{text} Share set to zero.")) == 5
