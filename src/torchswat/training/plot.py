"""Learning curves of a run, as SVG and as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchswat.training.run_folder import EpochMetrics

_TRAIN, _TEST = "#9a9a9a", "#0b62a4"


def plot_curves(rows: list[EpochMetrics], folder: Path, title: str) -> Path:
    """Draw loss and accuracy over the epochs as ``curves.svg`` and ``curves.png`` in `folder`.

    Parameters
    ----------
    rows : list of EpochMetrics
        The epochs, at least one.
    folder : Path
        Where the two files go.
    title : str
        Stands above both panels.

    Returns
    -------
    Path
        Of the PNG file.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) == 1 else None  # a line of one point cannot be seen
    for panel, quantity, unit in ((losses, "loss", "nats"), (accuracies, "accuracy", "%")):
        for part, colour in (("train", _TRAIN), ("test", _TEST)):
            values = [getattr(row, f"{part}_{quantity}") for row in rows]
            panel.plot(epochs, values, color=colour, marker=marker, label=part)
        panel.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    figure.suptitle(title)
    return _save(figure, folder / "curves.png")


def plot_comparison(runs: dict[str, list[EpochMetrics]], folder: Path) -> Path:
    """Draw the test accuracy of several runs over the epochs as ``comparison.svg`` and ``.png`` in `folder`.

    Parameters
    ----------
    runs : dict of str to list of EpochMetrics
        The epochs of each run by its title.
    folder : Path
        Where the two files go.

    Returns
    -------
    Path
        Of the PNG file.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    panel = figure.subplots()
    for title, rows in runs.items():
        panel.plot([r.epoch for r in rows], [r.test_accuracy for r in rows], marker="o", label=title)
    panel.set(xlabel="epoch", ylabel="test accuracy (%)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    return _save(figure, folder / "comparison.png")


def _save(figure: Figure, path: Path) -> Path:
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    return path
