"""Speed-up over sparsity, with the limit 1 / (1 - S) drawn in: no sparse product can do more. Memory; layers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchswat.bench.record import Record, Row
from torchswat.files import write_atomically

_COLOURS = ("#0b62a4", "#c8511b", "#3a8f3f", "#8a56a5", "#b58900", "#2a9d9d", "#a33b5e")


def draw(record: Record, path: Path) -> list[Path]:
    """Draw `record` as SVG and PNG, and return the two files; none where nothing in it goes over sparsity.

    Parameters
    ----------
    record : Record
        Of products, steps, a roofline, memory or a file.
    path : Path
        Of the drawing; its suffix is replaced.
    """
    if record.benchmark == "memory":
        return _save_both(_draw_memory(record), path)
    if record.benchmark == "roofline":
        return _save_both(_draw_roofline(record), path)
    if record.benchmark == "file":
        return _save_both(_draw_file(record), path)
    across, line = {"products": ("product", "shape"), "step": ("network", "how")}.get(
        record.benchmark, ("", "")
    )
    rows = [row for row in record.rows if row.get("limit")]
    if not across or not rows:
        return []
    panels = list(dict.fromkeys(row[across] for row in rows))
    figure = Figure(figsize=(1 + 3.6 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, name in zip(axes, panels, strict=True):
        _draw_panel(panel, [row for row in rows if row[across] == name], line)
        panel.set(title=name.replace("_", " "), xlabel="sparsity")
    axes[0].set_ylabel("speed-up over dense float32")
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(_caption(record), fontsize="small", color="#555555")
    return _save_both(figure, path)


def _draw_memory(record: Record) -> Figure:
    """A panel of bars a network: activations kept, and weights kept beside the parameters."""
    networks = _names(record.rows, "network")
    figure = Figure(figsize=(1 + 5.4 * len(networks), 1.9 + 0.27 * len(record.rows) / len(networks)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(networks), squeeze=False)[0]
    for panel, name in zip(axes, networks, strict=True):
        rows = [row for row in record.rows if row["network"] == name][::-1]
        labels = [_setting(row) for row in rows]
        activations, weights, peaks = (
            np.array([np.nan if row[key] is None else row[key] / 1e6 for row in rows])
            for key in ("activations", "weights_beside", "peak")
        )
        panel.barh(labels, activations, color=_COLOURS[0], label="activations kept")
        panel.barh(
            labels, weights, left=activations, color=_COLOURS[1], label="weights kept beside parameters"
        )
        panel.plot(peaks, labels, "k|", markersize=9, label="peak of the step above idle")
        for row, label in zip(rows, labels, strict=True):
            if row["activation_target"]:
                dense = row["activations"] * row["fewer_activations"] / 1e6
                target = dense / row["activation_target"]
                panel.plot(target, label, "o", color="white", markeredgecolor="black", markersize=4)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set(title=f"{name}, batch {rows[0]['batch_size']}", xlabel="MB")
        panel.tick_params(axis="y", labelsize="small")
    axes[0].plot(
        [], [], "o", color="white", markeredgecolor="black", markersize=4, label="target of activations"
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(_caption(record), fontsize="small", color="#555555")
    return figure


def _draw_roofline(record: Record) -> Figure:
    """GFLOP/s on entries kept over operations a byte; a marker a product, its area the time of all such layers."""
    facts = record.circumstances
    peak, memory = facts["peak_gflops"], facts["memory_gbs"]
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    panel = figure.subplots()
    intensities = [row["operations"] / row["bytes"] for row in record.rows]
    grid = np.geomspace(min(*intensities, peak / memory) / 2, max(*intensities, peak / memory) * 2, 100)
    panel.plot(grid, np.minimum(peak, memory * grid), color="black", linewidth=1)
    panel.text(grid[-1], 1.05 * peak, f"registers, {peak:.0f} GFLOP/s", ha="right", fontsize="small")
    panel.text(grid[0], 2.2 * memory * grid[0], f"memory, {memory:.0f} GB/s", fontsize="small", va="bottom")
    longest = max(row["ms"] * row["layers"] for row in record.rows)
    for index, product in enumerate(_names(record.rows, "product")):
        mine = [row for row in record.rows if row["product"] == product]
        panel.scatter(
            [row["operations"] / row["bytes"] for row in mine],
            [row["gflops"] for row in mine],
            s=[12 + 160 * row["ms"] * row["layers"] / longest for row in mine],
            color=_COLOURS[index],
            alpha=0.75,
            linewidth=0,
            label=product.replace("_", " "),
        )
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s on entries kept")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize="small", loc="lower right")
    networks = ", ".join(_names(record.rows, "network"))
    panel.set_title(
        f"{networks}, sparsity {record.rows[0]['sparsity']:g}; area: time of all layers of a size"
    )
    figure.suptitle(_caption(record), fontsize="small", color="#555555")
    return figure


def _draw_file(record: Record) -> Figure:
    """A panel of throughput over the batch size, and one of the longest layers of the largest batch."""
    most = max((row for row in record.rows if "layers" in row), key=lambda row: row["batch_size"])
    layers = sorted(most["layers"], key=lambda row: row["ms"])[-20:]
    figure = Figure(figsize=(11, 1.6 + max(2.4, 0.24 * len(layers))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    names = _names(record.rows, "how")
    sizes = sorted({row["batch_size"] for row in record.rows})
    for index, name in enumerate(names):
        rates = {row["batch_size"]: row["per_second"] for row in record.rows if row["how"] == name}
        places = np.arange(len(sizes)) + (index - (len(names) - 1) / 2) * 0.8 / len(names)
        heights = [rates.get(size, np.nan) for size in sizes]
        left.bar(places, heights, 0.8 / len(names), color=_COLOURS[index], label=name)
    left.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    left.set(title=record.circumstances["file"], xlabel="batch size", ylabel="a second")
    left.legend(frameon=False, fontsize="small")
    colours = dict(zip(("operations", "bytes", "overhead"), _COLOURS, strict=False))
    places = np.arange(len(layers))
    for bound, colour in colours.items():
        mine = [at for at, row in enumerate(layers) if row["bound"] == bound]
        times = [layers[at]["ms"] for at in mine]
        right.barh(mine, times, color=colour, label=f"bound by {bound}")
    right.plot([row["bound_ms"] for row in layers], places, "k|", markersize=9, label="at measured peaks")
    labels = [f"{row['layer'][-30:]} ({row['operation']})" for row in layers]
    right.set_yticks(places, labels, fontsize="x-small")
    right.set(title=f"layers, batch size {most['batch_size']}", xlabel="ms")
    right.legend(frameon=False, fontsize="small", loc="lower right")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_caption(record), fontsize="small", color="#555555")
    return figure


def _setting(row: Row) -> str:
    if row["sparsity"] is None:
        return row["algorithm"]
    narrow = "" if row["norm_input"] == "whole" else f", {row['norm_input']}"
    return f"{row['algorithm']} {row['sparsity']:g}{narrow}"


def _draw_panel(panel: Axes, rows: list[Row], line: str) -> None:
    sparsities = sorted({row["sparsity"] for row in rows})
    margin = 0.03
    grid = np.linspace(max(0.0, sparsities[0] - margin), min(0.99, sparsities[-1] + margin), 100)
    panel.plot(grid, 1 / (1 - grid), color="black", linestyle="--", linewidth=1, label="limit 1 / (1 - S)")
    panel.axhline(1, color="#bbbbbb", linewidth=1)
    for index, name in enumerate(_names(rows, line)):
        mine = sorted((row["sparsity"], row["speed_up"]) for row in rows if row[line] == name)
        colour = _COLOURS[index % len(_COLOURS)]
        panel.plot(*zip(*mine, strict=True), marker="o", markersize=4, color=colour, label=name)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylim(bottom=0)


def _names(rows: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _caption(record: Record) -> str:
    facts = record.circumstances
    return (
        f"{facts['processor']}, {facts['threads']} threads, {facts['engine']['isa'] or 'plain torch'}\n"
        f"torch {facts['torch']}, commit {facts['git_commit']}, {facts['repeats']} repeats"
    )


def _save_both(figure: Figure, path: Path) -> list[Path]:
    return [_save(figure, path.with_suffix(f".{suffix}")) for suffix in ("svg", "png")]


def _save(figure: Figure, path: Path) -> Path:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=150)
    write_atomically(path, drawn.getvalue())
    return path
