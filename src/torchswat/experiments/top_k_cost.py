"""What Top-K adds to a training step: comparisons counted against multiplications and additions."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from torchswat.drawing import COLOURS, caption, legend, panels
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.outcome import Experiment, Outcome, Row, Work
from torchswat.experiments.reductions import NETWORKS, SPARSITIES, counted, measured

ENTRIES, DRAWS = 100_000, 20
BATCH = 256  # of the paper's ImageNet runs
PERIODS = (1, 20)
BFPRT = 5.4305  # comparisons an entry at most: Blum et al. 1973, Time Bounds for Selection


def comparisons(magnitudes: np.ndarray, k: int) -> float:
    """Return how many comparisons an entry it takes to find the k-th largest by quickselect.

    The pivot is an entry drawn evenly (Hoare 1961, FIND); introselect does the same until it has taken more
    rounds than a good run would need. Each round compares every entry that remains with the pivot.

    Examples
    --------
    >>> comparisons(np.array([1.0]), 1)
    1.0
    """
    generator, compared, entries = np.random.default_rng(0), 0, len(magnitudes)
    while True:
        pivot = magnitudes[generator.integers(len(magnitudes))]
        compared += len(magnitudes)
        larger = magnitudes[magnitudes > pivot]
        equal = int((magnitudes == pivot).sum())
        if k <= len(larger):
            magnitudes = larger
        elif k <= len(larger) + equal:
            return compared / entries
        else:
            k -= len(larger) + equal
            magnitudes = magnitudes[magnitudes < pivot]


def cost_of_top_k(work: Work) -> Outcome:
    """Count it for the networks of Figure 7 at 224x224, and set it beside what was measured."""
    generator = np.random.default_rng(1)
    samples = [np.abs(generator.standard_normal(ENTRIES)) for _ in range(DRAWS)]
    rows: list[Row] = []
    for network in NETWORKS:
        for sparsity in SPARSITIES:
            account = counted(network, sparsity)
            kept = round((1 - sparsity) * ENTRIES)
            finding = {"introselect": fmean(comparisons(sample, kept) for sample in samples), "bfprt": BFPRT}
            weights = account.total("weights").dense / 4
            activations = account.total("selection").formula - weights  # of the images in the account
            entries = weights + activations * BATCH / account.batch
            operations = 2 * account.total("macs").formula * BATCH / account.batch
            for method, each in finding.items():
                for period in PERIODS:
                    looked_at = entries * (each / period + 1)  # and one comparison with the threshold
                    row = {"network": network, "sparsity": sparsity, "method": method, "period": period}
                    rows.append(
                        {**row, "comparisons_an_entry": each, "percent": 100 * looked_at / operations}
                    )
        if times := measured(network, work):
            share = {"method": "measured", "period": 1, "percent": 100 * times["selection_share"]}
            rows.append({"network": network, "sparsity": max(SPARSITIES), **share})
    return Outcome(rows, [_finding(rows)], _draw(rows), _REMARKS)


_REMARKS = [
    "Counted: comparisons to find the k-th largest of every weight and activation, and one an entry with the "
    "threshold, over the multiplications and additions of the sparse step (a multiply-accumulate is two).",
    "Measured: the share of a step's time in which this engine finds thresholds, estimated from a sample.",
]


def _finding(rows: list[Row]) -> Finding:
    limit = claims()["top-k-cost.share"].values["most"]
    every = {row["network"]: [] for row in rows}
    for row in rows:
        if row["method"] == "introselect" and row["period"] == 1:
            every[row["network"]].append(row["percent"])
    holds = max(map(max, every.values())) <= limit
    said = ", ".join(f"{NETWORKS[n]} {min(shares):.1f} to {max(shares):.1f} %" for n, shares in every.items())
    rare = [r["percent"] for r in rows if r["method"] == "introselect" and r["period"] == PERIODS[1]]
    text = (
        f"introselect in every step: {said}; every {PERIODS[1]}th step: {min(rare):.1f} to {max(rare):.1f} %"
    )
    timed = [row["percent"] for row in rows if row["method"] == "measured"]
    if timed:
        text += f"; measured {min(timed):.1f} to {max(timed):.1f} % of the time"
    return Finding("top-k-cost.share", holds, text)


def _draw(rows: list[Row]) -> Figure:
    said = claims()["top-k-cost.share"].values
    figure, axes = panels(len(NETWORKS), width=3.1, height=3.0)
    ways = {
        f"{method}, every {'step' if period == 1 else f'{period}th step'}": (method, period)
        for method in ("introselect", "bfprt")
        for period in PERIODS
    } | {"measured, of the time": ("measured", 1)}
    for panel, (network, short) in zip(axes, NETWORKS.items(), strict=True):
        for index, (label, way) in enumerate(ways.items()):
            mine = [r for r in rows if r["network"] == network and (r["method"], r["period"]) == way]
            if not mine:
                continue
            line = "-" if way[1] == 1 else ":"
            colour = COLOURS[index // 2]
            panel.plot(
                [r["sparsity"] for r in mine],
                [r["percent"] for r in mine],
                line,
                color=colour,
                marker="o",
                markersize=4,
                label=label,
            )
        label = f"the paper: {said['least']:g} to {said['most']:g} %"
        panel.axhspan(said["least"], said["most"], color=COLOURS[7], alpha=0.25, linewidth=0, label=label)
        panel.set(title=f"{short}, 224x224", xlabel="sparsity", ylim=(0, None))
    top = max(panel.get_ylim()[1] for panel in axes)
    for panel in axes:
        panel.set(ylabel="of the sparse step (%)", ylim=(0, top))
        legend(panel, loc="upper left", fontsize=7)
    caption(figure, f"batch {BATCH}; BFPRT at its bound of {BFPRT:g} comparisons an entry")
    return figure


EXPERIMENTS = (Experiment("top-k-cost", "What Top-K adds to a step", cost_of_top_k),)
