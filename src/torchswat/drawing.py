"""How every drawing of this project looks: few colours, no frame, and SVG that a page can recolour.

An SVG keeps its text as text and is the same file each time. The colours are a small fixed set, so that a
page with a dark background can replace each by another.
"""

from __future__ import annotations

import colorsys
import io
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0b62a4", "#c8511b", "#3a8f3f", "#8a56a5", "#b58900", "#2a9d9d", "#a33b5e", "#6b6f76")
"""Of series, in the order in which they are taken."""

INK, FAINT = "#222222", "#bbbbbb"
"""Of text and axes; of grids and what stays in the background."""

MARKERS = "os^Dv*PX"

_LETTERS_AN_INCH = 17  # of a caption
_MARGIN = 0.04  # inches around a panel of its own

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.titlecolor": INK,
}


def panels(
    columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.3
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row; `width` and `height` are those of one panel, in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [panel for row in axes for panel in row]


def shades(count: int) -> list[tuple[float, float, float]]:
    """Return colours that run from blue through green to red, all of which show on light and on dark."""
    hues = [0.6 - 0.58 * place / max(1, count - 1) for place in range(count)]
    return [colorsys.hls_to_rgb(hue, 0.5, 0.6) for hue in hues]


def legend(panel: Axes, **options: Any) -> None:
    """Add a small legend without a frame."""
    panel.legend(**{"frameon": False, "fontsize": 8, "labelcolor": INK, **options})


def name_line(panel: Axes, name: str, end: tuple[float, float], colour: Any) -> None:
    """Write a line's name behind its end, where it hides no other line as a legend might."""
    panel.annotate(
        name,
        end,
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )


def caption(figure: Figure, text: str) -> None:
    """Write below a figure what a reader must know about it, in lines as long as it is wide."""
    letters = int(_LETTERS_AN_INCH * figure.get_figwidth())
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, letters)]
    figure.supxlabel("\n".join(lines), fontsize=7.5, color=INK, ha="left", x=0.01)


def caption_of(figure: Figure) -> str:
    """Return what `caption` wrote, as one paragraph."""
    return figure.get_supxlabel().replace("\n", " ")


def render_panels(figure: Figure, name: str) -> list[bytes]:
    """Return each panel of `figure` as an SVG of its own, so that a narrow page can stack them; no caption.

    `name` keeps the ids of several SVGs in one page apart.
    """
    drawn = []
    with matplotlib.rc_context(_STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # panels keep their places while the others are hidden
        others = [*figure.axes, *figure.texts]
        for place, panel in enumerate(axes for axes in figure.axes if axes.axison):
            for other in others:
                other.set_visible(other is panel)
            box = panel.get_tightbbox()
            assert box is not None  # it is visible
            inches = figure.dpi_scale_trans.inverted().transform_bbox(box).padded(_MARGIN)
            drawn.append(_saved(figure, "svg", f"{name} {place}", bbox_inches=inches))
        for other in others:
            other.set_visible(True)
    return drawn


def render(figure: Figure, kind: str, name: str) -> bytes:
    """Return `figure` as ``svg`` or ``png``; `name` keeps the ids of several SVGs in one page apart."""
    return _saved(figure, kind, name)


def _saved(figure: Figure, kind: str, name: str, **options: Any) -> bytes:
    drawn = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        if kind == "svg":
            figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None}, **options)
        else:
            figure.savefig(drawn, format=kind, dpi=150, facecolor="white", **options)
    return drawn.getvalue()
