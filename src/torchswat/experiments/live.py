"""Figures 6b and 9e: thresholds and angles of every layer, recorded while a network trains at 70 %."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from torchswat.drawing import INK, caption, name_line, panels, shades
from torchswat.errors import InvalidData
from torchswat.experiments.accuracies import grid, said
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.outcome import Experiment, Outcome, Row, Trained, Work
from torchswat.experiments.scales import Scale, Training

NETWORK, DATA, SPARSITY = "resnet18", "cifar100", 0.7
_SETTLED = 0.1
"""The share of the training after which thresholds are compared: before, it leaves its random weights."""


def _trainings(scale: Scale) -> list[Training]:
    return grid(scale, NETWORK, DATA, ["swat"], [SPARSITY])


def sights(trained: Trained) -> list[Row]:
    """Return what a run recorded of its layers: a line for each step, layer and operand.

    Raises
    ------
    InvalidData
        Where it recorded nothing.
    """
    path = trained.folder / "analysis.csv"
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError:
        raise InvalidData(f"{path} is not there: the run recorded no thresholds and angles.") from None
    return [
        {
            "seed": trained.training.seed,
            "step": int(line["step"]),
            "layer": line["layer"],
            "operand": line["operand"],
            **{name: float(line[name]) for name in ("threshold", "angle", "density") if line[name]},
        }
        for line in lines
    ]


def _draw(rows: Sequence[Row], quantity: str, unit: str) -> Figure:
    """Draw a quantity of the first seed over the steps, a line a layer, weights and activations apart."""
    figure, axes = panels(2, width=4.6)
    first = min(row["seed"] for row in rows)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for panel, operand in zip(axes, ("weight", "activation"), strict=True):
        for layer, shade in zip(layers, shades(len(layers)), strict=True):
            line = [r for r in rows if (r["seed"], r["layer"], r["operand"]) == (first, layer, operand)]
            steps, values = [r["step"] for r in line], [r[quantity] for r in line]
            panel.plot(steps, values, color=shade, linewidth=1.2)
            if layer in (layers[0], layers[-1]):
                name_line(panel, layer, (steps[-1], values[-1]), shade)
        panel.set(
            title=operand, xlabel="step", ylabel=f"{quantity} ({unit})" if unit else quantity, ylim=(0, None)
        )
    return figure


def _said(work: Work) -> str:
    every = work.trained[0].training.recipe(work.scale).analysis.every_steps
    drawn = "the first drawn" if len(work.trained) > 1 else ""
    lines = f"SWAT 70 %, a line a layer from blue (first) to red (last), looked at every {every} steps"
    return f"{lines}; {said(work, drawn)}"


def thresholds(work: Work) -> Outcome:
    """Figure 6b."""
    rows = [row for trained in work.trained for row in sights(trained)]
    figure = _draw(rows, "threshold", "")
    caption(figure, _said(work))
    claim, moved = claims()["6b.threshold"], _moved(rows)
    typical = {operand: float(np.median(list(of.values()))) for operand, of in moved.items()}
    text = ", ".join(
        f"{operand} {100 * typical[operand]:.0f} % (at most {100 * max(moved[operand].values()):.0f} %)"
        for operand in moved
    )
    text = f"after the first tenth a layer's threshold deviates by, in the median: {text}"
    return Outcome(rows, [Finding(claim.name, max(typical.values()) <= claim.tolerance, text)], figure)


def _moved(rows: Sequence[Row]) -> dict[str, dict[tuple[str, int], float]]:
    """How much each threshold deviates from its own mean once settled: a coefficient of variation."""
    settled = _SETTLED * max(row["step"] for row in rows)
    series: dict[str, dict[tuple[str, int], list[float]]] = {}
    for row in rows:
        if row["step"] > settled:
            key = row["layer"], row["seed"]
            series.setdefault(row["operand"], {}).setdefault(key, []).append(row["threshold"])
    return {
        operand: {key: float(np.std(values) / (np.mean(values) or 1)) for key, values in of.items()}
        for operand, of in series.items()
    }


def angles(work: Work) -> Outcome:
    """Figure 9e."""
    rows = [row for trained in work.trained for row in sights(trained)]
    limit = claims()["9e.angle"].values["degrees"]
    figure = _draw(rows, "angle", "degrees")
    for panel in figure.axes:
        panel.axhline(limit, color=INK, linestyle="--", linewidth=0.8)
        panel.set_ylim(0, max(40, *(row["angle"] + 2 for row in rows)))
    caption(figure, f"Dashed: the paper's bound of {limit:g}°. {_said(work)}")
    worst = {
        o: max((r for r in rows if r["operand"] == o), key=lambda r: r["angle"])
        for o in ("weight", "activation")
    }
    seeds = len({row["seed"] for row in rows})
    text = "; ".join(
        f"{operand} {row['angle']:.1f}° at most, in {row['layer']}" for operand, row in worst.items()
    ) + (f" (of {seeds} seeds)" if seeds > 1 else "")
    return Outcome(
        rows, [Finding("9e.angle", all(row["angle"] < limit for row in worst.values()), text)], figure
    )


EXPERIMENTS = (
    Experiment("6b", "Thresholds during training", thresholds, _trainings),
    Experiment("9e", "Sparsification angles during training", angles, _trainings),
)
