"""The drawings that the page makes itself: learning curves, layers over time, speed over sparsity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchswat.drawing import COLOURS, FAINT, INK, legend, panels, render_panels, shades
from torchswat.errors import InvalidData
from torchswat.report.discover import Row, Run

_COLUMNS = 3
_PIXELS_A_POINT = (0.85, 1.5)  # at least, where the page is narrow; at most
_SVG = "{http://www.w3.org/2000/svg}"
_DRAWS = {"svg", "g", "defs", "path", "rect", "circle", "line", "use", "text", "tspan", "clipPath"}
_LENGTHS = {"d", "x", "y", "transform", "width", "height"}
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_VARIABLES = {**{colour: f"--series-{i}" for i, colour in enumerate(COLOURS)}, INK: "--ink", FAINT: "--faint"}


def themed(svg: str, label: str = "") -> str:
    """Return an SVG for inlining: as wide as there is room, its colours as variables of the page.

    `label` says what it shows to those who do not see it.

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
    if label:
        root.attrib |= {"role": "img", "aria-label": label}
    _drop_unused_ids(root)
    if width.replace(".", "", 1).isdigit():  # of a wide drawing the text is as large as that of a narrow one
        least, most = (scale * float(width) for scale in _PIXELS_A_POINT)
        root.set("style", f"min-width: {least:.0f}px; max-width: {most:.0f}px")
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _clean(element: ElementTree.Element) -> None:
    """Drop what is not plain drawing, and digits that nobody can see, from here downwards."""
    for child in list(element):
        if child.tag.removeprefix(_SVG) in _DRAWS:
            _clean(child)
        else:
            element.remove(child)
    for name, value in list(element.attrib.items()):
        is_link = name.endswith("href") and not value.startswith("#")
        if name.lower().startswith("on") or is_link or "url(" in value.replace("url(#", ""):
            del element.attrib[name]
        elif name in _LENGTHS:
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", value))


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Drop names that nothing refers to: several drawings of a page have the same."""
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


def inline(figure: Figure, name: str, label: str = "") -> list[str]:
    """Return the panels of a drawing as SVG for the page."""
    return [themed(panel.decode(), label) for panel in render_panels(figure, name)]


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Draw test accuracy over the epochs, a panel an algorithm with dense in each; means over seeds."""
    algorithms = sorted({run.algorithm for run in runs if run.algorithm != "dense"}) or ["dense"]
    figure, axes = panels(*_grid(len(algorithms)), width=3.3, height=2.6)
    dense = [run for run in runs if run.algorithm == "dense"]
    for panel, algorithm in zip(axes, algorithms, strict=False):
        mine = [run for run in runs if run.algorithm == algorithm]
        if dense:
            panel.plot(*_mean_curve(dense), color=INK, linestyle="--", linewidth=1.2, label="dense")
            _draw_range(panel, dense, INK)
        for colour, sparsity in zip(COLOURS, sorted({run.sparsity for run in mine} - {""}), strict=False):
            these = [run for run in mine if run.sparsity == sparsity]
            curve = _mean_curve(these)
            panel.plot(*curve, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=sparsity)
            _draw_range(panel, these, colour)
        panel.set(title=algorithm, xlabel="epoch", ylabel="test accuracy (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(panel, fontsize=7)
    _leave_empty(axes[len(algorithms) :])
    return figure


def _mean_curve(runs: Sequence[Run]) -> tuple[list[int], list[float]]:
    """Epochs and mean accuracies, as far as the longest run goes."""
    curves = [[epoch["test_accuracy"] for epoch in run.epochs] for run in runs]
    epochs = range(max(map(len, curves), default=0))
    return [e + 1 for e in epochs], [fmean(curve[e] for curve in curves if e < len(curve)) for e in epochs]


def _draw_range(panel: Axes, runs: Sequence[Run], colour: str) -> None:
    """A band from the lowest to the highest of several seeds."""
    curves = [[epoch["test_accuracy"] for epoch in run.epochs] for run in runs]
    if len(curves) > 1:
        at = list(zip(*curves, strict=False))  # as far as all of them go
        epochs = range(1, len(at) + 1)
        panel.fill_between(epochs, [*map(min, at)], [*map(max, at)], color=colour, alpha=0.15, linewidth=0)


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
        panel.set(title=operand, xlabel="step", ylabel=units.get(quantity, quantity))
        panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    legend(axes[0], fontsize=7)
    return figure


def speed_over_sparsity(rows: Sequence[Row], across: str, line: str) -> Figure | None:
    """Draw the speed-up over dense, a panel for each value of `across`, a line for each of `line`.

    What has no sparsity is a level; where only one sparsity was tried, all are bars.
    """
    rows = [row for row in rows if row.get("speed_up")]
    names = list(dict.fromkeys(str(row[across]) for row in rows))
    sparse = [row for row in rows if row.get("limit")]
    if not sparse:
        return None
    if len({row["sparsity"] for row in sparse}) == 1:
        return _speed_bars(rows, names, across, line)
    figure, axes = panels(*_grid(len(names)), width=3.3, height=2.8)
    for panel, name in zip(axes, names, strict=False):
        mine = [row for row in rows if str(row[across]) == name]
        sparsities = sorted({row["sparsity"] for row in mine if row.get("limit")})
        limits = np.linspace(max(0, sparsities[0] - 0.02), min(0.97, sparsities[-1] + 0.02), 50)
        panel.plot(limits, 1 / (1 - limits), color=INK, linestyle=":", linewidth=1, label="1 / (1 - S)")
        of_interest = sorted(mine, key=lambda row: not row.get("limit"))  # first the sparse ones
        for index, kind in enumerate(dict.fromkeys(str(row[line]) for row in of_interest)):
            drawn, colour = [row for row in mine if str(row[line]) == kind], COLOURS[index % len(COLOURS)]
            points = sorted((row["sparsity"], row["speed_up"]) for row in drawn if row.get("limit"))
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=kind)
            else:
                panel.axhline(drawn[0]["speed_up"], color=colour, linestyle="--", linewidth=1, label=kind)
        panel.set(
            title=name.replace("_", " "), xlabel="sparsity", ylabel="times as fast as dense", ylim=(0, None)
        )
        legend(panel, fontsize=7)
    _leave_empty(axes[len(names) :])
    return figure


def _speed_bars(rows: Sequence[Row], names: Sequence[str], across: str, line: str) -> Figure:
    """Draw the speed-up at the one sparsity there is, and of what is dense, as bars."""
    lines = max(sum(str(row[across]) == name for row in rows) for name in names)
    figure, axes = panels(*_grid(len(names)), width=3.3, height=0.9 + 0.26 * lines)
    longest = max(row["speed_up"] for row in rows)
    for panel, name in zip(axes, names, strict=False):
        mine = [row for row in rows if str(row[across]) == name][::-1]
        labels = [f"{row[line]}, S = {row['sparsity']:g}" if row.get("limit") else row[line] for row in mine]
        colours = [COLOURS[0] if row.get("limit") else COLOURS[7] for row in mine]
        bars = panel.barh(labels, [row["speed_up"] for row in mine], 0.7, color=colours)
        panel.bar_label(bars, fmt="%.2fx", fontsize=7, padding=2, color=INK)
        panel.axvline(1, color=FAINT, linewidth=0.8, zorder=0)
        panel.tick_params(axis="y", labelsize=7)
        panel.set(title=name.replace("_", " "), xlabel="times as fast as dense", xlim=(0, 1.2 * longest))
    _leave_empty(axes[len(names) :])
    return figure


def memory_bars(rows: Sequence[Row]) -> Figure:
    """Draw the bytes that are saved for backward, a panel a network, a bar a setting."""
    names = list(dict.fromkeys(str(row["network"]) for row in rows))
    figure, axes = panels(*_grid(len(names), 2), width=4.8, height=0.9 + 0.21 * len(rows) / len(names))
    for panel, name in zip(axes, names, strict=False):
        mine = [row for row in rows if row["network"] == name][::-1]
        labels = [_setting(row) for row in mine]
        activations, weights = ([row[key] / 1e6 for row in mine] for key in ("activations", "weights_beside"))
        panel.barh(labels, activations, 0.7, color=COLOURS[0], label="activations")
        bars = panel.barh(
            labels, weights, 0.7, left=activations, color=COLOURS[1], label="weights, beside the parameters"
        )
        totals = [f"{sum(both):.0f}" for both in zip(activations, weights, strict=True)]
        panel.bar_label(bars, totals, fontsize=7, padding=2, color=INK)
        panel.tick_params(axis="y", labelsize=7)
        panel.set(title=f"{name}, batch {mine[0]['batch_size']}", xlabel="MB saved for backward")
        panel.set_xlim(0, 1.12 * max(map(sum, zip(activations, weights, strict=True))))
        below = -0.5 / panel.get_window_extent().height * figure.dpi
        legend(panel, fontsize=7, loc="upper center", bbox_to_anchor=(0.4, below), ncols=2)
    _leave_empty(axes[len(names) :])
    return figure


def _setting(row: Row) -> str:
    if row["sparsity"] is None:
        return str(row["algorithm"])
    narrow = "" if row["norm_input"] == "whole" else f", batch norm {row['norm_input']}"
    return f"{row['algorithm']} {row['sparsity']:g}{narrow}"


def _grid(count: int, most: int = _COLUMNS) -> tuple[int, int]:
    """Columns and rows for so many panels."""
    columns = min(most, count)
    return columns, -(-count // columns)


def _leave_empty(axes: Sequence[Axes]) -> None:
    for panel in axes:
        panel.set_axis_off()
