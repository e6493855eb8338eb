"""Drawings: the same file each time, text that stays text, and colours that a page can find."""

from __future__ import annotations

import re

from torchswat.drawing import COLOURS, INK, caption, caption_of, legend, panels, render, render_panels


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


def test_panels_are_drawings_of_their_own():
    figure, axes = panels(2)
    for number, panel in enumerate(axes):
        panel.plot([1, 2], [3, 4], label=f"line {number}")
        panel.set_title(f"title {number}")
        legend(panel)
    caption(figure, "what to know " * 20)
    whole = render(figure, "svg", "one").decode()
    one, two = (svg.decode() for svg in render_panels(figure, "one"))
    assert ">title 0<" in one and ">line 0<" in one and ">title 1<" in two and ">line 1<" in two
    assert not any(words in one for words in (">title 1<", ">line 1<", "what to know"))
    width = lambda svg: float(re.search(r'width="([\d.]+)pt"', svg)[1])  # noqa: E731
    assert width(one) < 0.6 * width(whole)
    assert render_panels(figure, "one")[0].decode() == one, "the same each time"
    assert caption_of(figure) == ("what to know " * 20).strip()


def test_a_panel_without_axes_is_left_out():
    figure, (first, second) = panels(2)
    second.set_axis_off()
    assert len(render_panels(figure, "one")) == 1 and first.get_visible() and second.get_visible()
