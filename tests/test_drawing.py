"""Drawings: the same file each time, text that stays text, and colours that a page can find."""

from __future__ import annotations

import re

from torchswat.drawing import COLOURS, INK, caption, legend, panels, render


def drawn(name: str = "one") -> bytes:
    figure, (panel, _) = panels(2)
    panel.plot([1, 2], [3, 4], color=COLOURS[1], label="a line")
    legend(panel)
    caption(figure, "what to know")
    return render(figure, "svg", name)


def test_an_svg_is_the_same_each_time_and_keeps_its_text():
    svg = drawn().decode()
    assert svg == drawn().decode()
    assert ">a line<" in svg and ">what to know<" in svg
    assert COLOURS[1] in svg and INK in svg


def test_ids_of_two_drawings_differ():
    one, two = (set(re.findall(r'clipPath id="([^"]*)"', drawn(name).decode())) for name in ("one", "two"))
    assert one and two and not one & two, "clip paths of one page would be mixed up"


def test_a_png_is_a_picture():
    figure, _ = panels()
    assert render(figure, "png", "one").startswith(b"\x89PNG")
