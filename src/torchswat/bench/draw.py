"""Speed-up over sparsity, with the limit 1 / (1 - S) drawn in: no sparse product can do more."""

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
        Of products or steps.
    path : Path
        Of the drawing; its suffix is replaced.
    """
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
    return [_save(figure, path.with_suffix(f".{suffix}")) for suffix in ("svg", "png")]


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


def _save(figure: Figure, path: Path) -> Path:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=150)
    write_atomically(path, drawn.getvalue())
    return path
