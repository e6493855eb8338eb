"""Figures 9a to 9d: how far Top-K turns random vectors of many dimensions, against the closed form."""

from __future__ import annotations

import math

import numpy as np
import torch

from torchswat.analysis import angle_between, expected_angle, masked_angle, needed_density
from torchswat.drawing import COLOURS, FAINT, INK, caption, legend, panels
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.outcome import Experiment, Outcome, Work
from torchswat.selection import select

DIMENSION, TRIALS = 1000, 10_000
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
LIMITS = (20, 30, 40)
DIMENSIONS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_BIN = 0.25  # degrees


def _normal(trials: int, dimension: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(trials, dimension, generator=generator)


def _peak(angles: np.ndarray) -> float:
    """The middle of the fullest bin, smoothed over about a standard deviation: bins alone are noisy."""
    counts, edges = np.histogram(angles, np.arange(0, 180 + _BIN, _BIN))
    smooth = np.convolve(counts, np.ones(max(3, int(angles.std() / _BIN) | 1)), mode="same")
    return float(edges[smooth.argmax()] + _BIN / 2)


def distribution(work: Work) -> Outcome:
    """Figure 9a: the sparsification angles of 10,000 vectors, and the angles between random ones."""
    vectors = _normal(TRIALS, DIMENSION)
    drawn = {s: masked_angle(vectors, select(vectors, s, "chw")).numpy() for s in SPARSITIES}
    between = angle_between(vectors, _normal(TRIALS, DIMENSION, seed=1)).numpy()
    figure, (panel,) = panels(width=6.2)
    rows, findings = [], []
    for index, (sparsity, angles) in enumerate(drawn.items()):
        name, expected = f"S = {sparsity:g}", expected_angle(sparsity)
        rows.append(
            {"what": f"top-k {sparsity:g}", "sparsity": sparsity} | _moments(angles) | {"expected": expected}
        )
        panel.hist(angles, _bins(angles), color=COLOURS[index], label=f"{name}: {angles.mean():.1f}°")
        panel.axvline(expected, color=INK, linewidth=0.8, linestyle=":")
    rows.append({"what": "two random vectors"} | _moments(between) | {"expected": 90.0})
    panel.hist(between, _bins(between), color=COLOURS[7], label=f"two random vectors: {between.mean():.1f}°")
    for name, angles in (("9a.80", drawn[0.8]), ("9a.90", drawn[0.9]), ("9a.random", between)):
        claim, peak = claims()[name], _peak(angles)
        near = abs(peak - claim.values["degrees"]) <= claim.tolerance
        text = f"peak {peak:.1f}°, mean {angles.mean():.2f}° ± {angles.std():.2f}°"
        findings.append(
            Finding(
                name,
                near,
                text
                + (f"; exact {expected_angle(float(name[3:]) / 100):.2f}°" if name != "9a.random" else ""),
            )
        )
    panel.set(xlabel="angle (degrees)", ylabel=f"trials of {TRIALS:,}", xlim=(0, 100))
    legend(panel, title="Top-K at sparsity", title_fontsize=8, loc="upper right")
    caption(
        figure, f"standard normal, d = {DIMENSION}; bins of {_BIN}°; dotted: closed form for many dimensions"
    )
    return Outcome(rows, findings, figure)


def _bins(angles: np.ndarray) -> list[float]:
    return np.arange(math.floor(angles.min()), math.ceil(angles.max()) + _BIN, _BIN).tolist()


def _moments(angles: np.ndarray) -> dict[str, float]:
    return {"peak": _peak(angles), "mean": float(angles.mean()), "deviation": float(angles.std())}


# ---- how much must be kept ---------------------------------------------------------------------------------


def needed_shares(dimension: int, degrees: float, trials: int = 1000) -> np.ndarray:
    """Return the least share of entries that keeps the angle of each normal vector within a limit.

    Examples
    --------
    >>> bool(abs(needed_shares(1000, 30).mean() - 0.27) < 0.01)
    True
    """
    squares = _normal(trials, dimension, seed=dimension).double().square().sort(dim=1, descending=True).values
    kept = squares.cumsum(1) / squares.sum(1, keepdim=True)
    enough = kept >= math.cos(math.radians(degrees)) ** 2
    return ((enough.int().argmax(1) + 1) / dimension).numpy()


def _shares() -> list[dict[str, float]]:
    rows = []
    for degrees in LIMITS:
        for dimension in DIMENSIONS:
            shares = 100 * needed_shares(dimension, degrees)
            found = {"percent": float(shares.mean()), "deviation": float(shares.std())}
            expected = 100 * needed_density(degrees)
            rows.append({"degrees": degrees, "dimension": dimension, **found, "expected": expected})
    return rows


def share_needed(work: Work) -> Outcome:
    """Figure 9b: the share of entries that an angle needs, over the dimension."""
    rows, claim = _shares(), claims()["9b.share"]
    figure, (panel,) = panels(width=4.8)
    for colour, degrees in zip(COLOURS, LIMITS, strict=False):
        mine = [row for row in rows if row["degrees"] == degrees]
        dimensions, percent = [r["dimension"] for r in mine], np.array([r["percent"] for r in mine])
        deviation = np.array([r["deviation"] for r in mine])
        panel.plot(dimensions, percent, color=colour, marker="o", markersize=4, label=f"under {degrees}°")
        panel.fill_between(
            dimensions, percent - deviation, percent + deviation, color=colour, alpha=0.2, linewidth=0
        )
        panel.axhline(100 * needed_density(degrees), color=colour, linestyle=":", linewidth=1)
        panel.plot(
            [dimensions[-1] * 1.25],
            [claim.values[degrees]],
            color=colour,
            marker="*",
            markersize=10,
            linestyle="",
        )
    panel.plot([], [], color=INK, marker="*", markersize=8, linestyle="", label="the paper's number")
    panel.set(xscale="log", xlabel="dimension d", ylabel="entries that must be kept (%)", ylim=(0, 60))
    legend(panel, ncols=2)
    caption(
        figure,
        "1000 trials, standard normal; bands: ± a deviation; dotted: closed form for many dimensions",
    )
    at = {row["degrees"]: row["percent"] for row in rows if row["dimension"] == DIMENSION}
    near = all(abs(at[degrees] - claim.values[degrees]) <= claim.tolerance for degrees in LIMITS)
    text = f"d = {DIMENSION}: " + ", ".join(f"{at[degrees]:.1f} %" for degrees in LIMITS)
    small = {row["degrees"]: row["percent"] for row in rows if row["dimension"] == DIMENSIONS[0]}
    text += f"; d = {DIMENSIONS[0]}: " + ", ".join(f"{small[degrees]:.1f} %" for degrees in LIMITS)
    remark = (
        "The paper's shares lie a little above those of a vector of 1000 dimensions, nearer to those of few "
        "dimensions; it does not say which dimensions they are of."
    )
    return Outcome(list(rows), [Finding("9b.share", near, text)], figure, [remark])


def share_deviation(work: Work) -> Outcome:
    """Figure 9c: how much the share of Figure 9b differs from vector to vector."""
    rows, limit = _shares(), claims()["9c.deviation"].values["points"]
    figure, (panel,) = panels(width=4.8)
    for colour, degrees in zip(COLOURS, LIMITS, strict=False):
        mine = [row for row in rows if row["degrees"] == degrees]
        panel.plot(
            [r["dimension"] for r in mine],
            [r["deviation"] for r in mine],
            color=colour,
            marker="o",
            markersize=4,
            label=f"under {degrees}°",
        )
    panel.axhline(limit, color=FAINT, linestyle="--", linewidth=1)
    panel.annotate(
        f"the paper: less than {limit:g}", (DIMENSIONS[-1], limit), ha="right", va="bottom", fontsize=8
    )
    panel.set(
        xscale="log", xlabel="dimension d", ylabel="standard deviation (percentage points)", ylim=(0, None)
    )
    legend(panel)
    caption(figure, "1000 trials, standard normal")
    worst = {d: max(r["deviation"] for r in rows if r["dimension"] == d) for d in DIMENSIONS}
    under = [dimension for dimension in DIMENSIONS if worst[dimension] < limit]
    text = f"d = {DIMENSION}: {worst[DIMENSION]:.2f} points at most; below {limit:g} from d = {under[0]} on"
    return Outcome(list(rows), [Finding("9c.deviation", worst[DIMENSION] < limit, text)], figure)


def angle_over_share(work: Work) -> Outcome:
    """Figure 9d: the angle over the share of entries that Top-K keeps."""
    vectors = _normal(1000, DIMENSION)
    rows = []
    for percent in (1, 2, 5, *range(10, 100, 5), 99):
        angles = masked_angle(vectors, select(vectors, 1 - percent / 100, "chw")).numpy()
        expected = expected_angle(1 - percent / 100)
        rows.append(
            {
                "kept_percent": percent,
                "mean": float(angles.mean()),
                "deviation": float(angles.std()),
                "low": float(angles.min()),
                "high": float(angles.max()),
                "expected": expected,
            }
        )
    figure, (panel,) = panels(width=4.8)
    kept = [row["kept_percent"] for row in rows]
    panel.fill_between(
        kept,
        [r["low"] for r in rows],
        [r["high"] for r in rows],
        color=COLOURS[0],
        alpha=0.25,
        linewidth=0,
        label="all 1000 trials",
    )
    panel.plot(kept, [r["mean"] for r in rows], color=COLOURS[0], marker="o", markersize=3, label="mean")
    panel.plot(
        kept, [r["expected"] for r in rows], color=INK, linestyle=":", linewidth=1, label="closed form"
    )
    claim = claims()["9d.30"]
    limit, sparsity = claim.values["degrees"], claim.values["sparsity"]
    panel.plot(
        [100 * (1 - sparsity)],
        [limit],
        color=COLOURS[1],
        marker="*",
        markersize=11,
        linestyle="",
        label="the paper's number",
    )
    panel.set(xlabel="entries kept (%)", ylabel="sparsification angle (degrees)", xlim=(0, 100), ylim=(0, 90))
    legend(panel)
    caption(figure, f"1000 trials, standard normal, d = {DIMENSION}")
    at = next(row for row in rows if row["kept_percent"] == round(100 * (1 - sparsity)))
    text = f"{at['mean']:.1f}° ± {at['deviation']:.1f}° at S = {sparsity:g}; {at['high']:.1f}° at most"
    return Outcome(rows, [Finding("9d.30", at["high"] <= limit, text)], figure)


EXPERIMENTS = (
    Experiment("9a", "Sparsification angle of random vectors", distribution),
    Experiment("9b", "Share of entries that an angle needs", share_needed),
    Experiment("9c", "Deviation of that share", share_deviation),
    Experiment("9d", "Angle over the share kept", angle_over_share),
)
