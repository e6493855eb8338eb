"""The drawings that the page makes itself: learning curves, layers over time, speed over sparsity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchswat.drawing import COLOURS, FAINT, INK, legend, panels, render, shades
from torchswat.errors import InvalidData
from torchswat.report.discover import Row, Run

_COLUMNS = 3
_PIXELS_A_POINT = (0.9, 1.5)  # at least, where the page is narrow; at most
_SVG = "{http://www.w3.org/2000/svg}"
_DRAWS = {"svg", "g", "defs", "path", "rect", "circle", "line", "use", "text", "tspan", "clipPath"}
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_VARIABLES = {**{colour: f"--series-{i}" for i, colour in enumerate(COLOURS)}, INK: "--ink", FAINT: "--faint"}


def themed(svg: str) -> str:
    """Return an SVG for inlining: as wide as there is room, its colours as variables of the page.

    What could run or fetch something (scripts, handlers of events, links) is left out, so that a drawing from
    anywhere is only looked at.

    Raises
    ------
    InvalidData
        Where it is not SVG.

    Examples
    --------
    >>> themed('<svg xmlns="http://www.w3.org/2000/svg"><path onclick="x()" fill="#0b62a4"/></svg>')
    '<svg xmlns="http://www.w3.org/2000/svg"><path fill="var(--series-0)" /></svg>'
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise InvalidData(f"a drawing is not SVG: {error}") from None
    width = root.attrib.pop("width", "").removesuffix("pt")
    root.attrib.pop("height", None)
    _clean(root)
    _drop_unused_ids(root)
    if width.replace(".", "", 1).isdigit():  # of a wide drawing the text is as large as that of a narrow one
        least, most = (scale * float(width) for scale in _PIXELS_A_POINT)
        root.set("style", f"min-width: {least:.0f}px; max-width: {most:.0f}px")
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _clean(element: ElementTree.Element) -> None:
    """Drop what is not plain drawing, from here downwards."""
    for child in list(element):
        if child.tag.removeprefix(_SVG) in _DRAWS:
            _clean(child)
        else:
            element.remove(child)
    for name, value in list(element.attrib.items()):
        is_link = name.endswith("href") and not value.startswith("#")
        if name.lower().startswith("on") or is_link or "url(" in value.replace("url(#", ""):
            del element.attrib[name]


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Drop names that nothing refers to: several drawings of a page have the same."""
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


def inline(figure: Figure, name: str) -> str:
    """Return a drawing as SVG for the page."""
    return themed(render(figure, "svg", name).decode())


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Draw test accuracy over the epochs, a panel an algorithm with dense in each; means over seeds."""
    algorithms = sorted({run.algorithm for run in runs if run.algorithm != "dense"}) or ["dense"]
    columns = min(_COLUMNS, len(algorithms))
    figure, axes = panels(columns, -(-len(algorithms) // columns), width=3.3, height=2.6)
    dense = [run for run in runs if run.algorithm == "dense"]
    for panel, algorithm in zip(axes, algorithms, strict=False):
        mine = [run for run in runs if run.algorithm == algorithm]
        if dense:
            panel.plot(*_mean_curve(dense), color=INK, linestyle="--", linewidth=1, label="dense")
        for colour, sparsity in zip(COLOURS, sorted({run.sparsity for run in mine} - {""}), strict=False):
            curve = _mean_curve([run for run in mine if run.sparsity == sparsity])
            panel.plot(*curve, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=sparsity)
        panel.set(title=algorithm, xlabel="epoch", ylabel="test accuracy (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(panel, fontsize=7)
    for panel in axes[len(algorithms) :]:
        panel.set_axis_off()
    return figure


def _mean_curve(runs: Sequence[Run]) -> tuple[list[int], list[float]]:
    """Epochs and mean accuracies, as far as the longest run goes."""
    curves = [[epoch["test_accuracy"] for epoch in run.epochs] for run in runs]
    epochs = range(max(map(len, curves), default=0))
    return [e + 1 for e in epochs], [fmean(curve[e] for curve in curves if e < len(curve)) for e in epochs]


def layers_over_time(run: Run) -> Figure:
    """Draw threshold, angle and density of every layer over the steps, a column each, a row an operand."""
    quantities = [q for q in ("threshold", "angle", "density") if any(sight[q] for sight in run.sights)]
    operands = list(dict.fromkeys(sight["operand"] for sight in run.sights))
    layers = list(dict.fromkeys(sight["layer"] for sight in run.sights))
    figure, axes = panels(len(quantities), len(operands), width=3.3, height=2.3)
    units = {"angle": "angle (degrees)", "density": "density really reached"}
    for panel, (operand, quantity) in zip(axes, [(o, q) for o in operands for q in quantities], strict=True):
        for layer, shade in zip(layers, shades(len(layers)), strict=True):
            seen = [s for s in run.sights if (s["layer"], s["operand"]) == (layer, operand) and s[quantity]]
            label = layer if layer in (layers[0], layers[-1]) else None
            steps, values = [int(s["step"]) for s in seen], [float(s[quantity]) for s in seen]
            marker = "o" if len(steps) == 1 else None
            panel.plot(steps, values, color=shade, linewidth=1, marker=marker, markersize=3, label=label)
        panel.set(title=operand, xlabel="step", ylabel=units.get(quantity, quantity), ylim=(0, None))
    legend(axes[0], fontsize=7)
    return figure


def speed_over_sparsity(rows: Sequence[Row], across: str, line: str) -> Figure | None:
    """Draw the speed-up over dense, a panel for each value of `across`, a line for each of `line`."""
    rows = [row for row in rows if row.get("limit") and row.get("speed_up")]
    names = list(dict.fromkeys(str(row[across]) for row in rows))
    if not names:
        return None
    columns = min(_COLUMNS, len(names))
    figure, axes = panels(columns, -(-len(names) // columns), width=3.3, height=2.8)
    for panel, name in zip(axes, names, strict=False):
        mine = [row for row in rows if str(row[across]) == name]
        sparsities = sorted({row["sparsity"] for row in mine})
        limits = np.linspace(max(0, sparsities[0] - 0.02), min(0.97, sparsities[-1] + 0.02), 50)
        panel.plot(limits, 1 / (1 - limits), color=INK, linestyle=":", linewidth=1, label="1 / (1 - S)")
        panel.axhline(1, color=FAINT, linewidth=1)
        for index, kind in enumerate(dict.fromkeys(str(row[line]) for row in mine)):
            points = sorted((row["sparsity"], row["speed_up"]) for row in mine if str(row[line]) == kind)
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=kind)
        panel.set(
            title=name.replace("_", " "), xlabel="sparsity", ylabel="times as fast as dense", ylim=(0, None)
        )
        legend(panel, fontsize=7)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    return figure
