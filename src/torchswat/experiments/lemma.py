"""Lemma B.1: among all choices of k entries Top-K turns least, tried on every choice there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from torchswat.analysis import angle_between, masked_angle
from torchswat.drawing import COLOURS, FAINT, caption, legend, panels
from torchswat.experiments.claims import Finding
from torchswat.experiments.outcome import Experiment, Outcome, Work
from torchswat.selection import select

DIMENSION, VECTORS = 12, 200


def _vectors() -> torch.Tensor:
    """Vectors of several kinds: normal, heavy-tailed, uniform, and with many equal entries."""
    generator = torch.Generator().manual_seed(0)
    share = (VECTORS // 4, DIMENSION)
    normal = torch.randn(share, generator=generator, dtype=torch.float64)
    heavy = torch.randn(share, generator=generator, dtype=torch.float64) ** 5
    uniform = 2 * torch.rand(share, generator=generator, dtype=torch.float64) - 1
    equal = torch.randint(-2, 3, share, generator=generator).double()
    equal[equal.abs().sum(1) == 0] = 1
    return torch.cat([normal, heavy, uniform, equal])


def all_masks(dimension: int, kept: int) -> torch.Tensor:
    """Return every mask of `kept` entries, bool (choices, dimension).

    Examples
    --------
    >>> all_masks(3, 2).int().tolist()
    [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    """
    chosen = torch.tensor(list(combinations(range(dimension), kept)))
    return torch.zeros(len(chosen), dimension, dtype=torch.bool).scatter_(1, chosen, True)


def _sparsity(kept: int) -> float:
    """Return a sparsity at which `kept` entries stay: half an entry above the bound, for rounding."""
    return (DIMENSION - kept + 0.5) / DIMENSION


def lemma(work: Work) -> Outcome:
    """Compare Top-K with every mask, and the two formulas of the angle."""
    vectors = _vectors()
    rows, spreads, off, tried = [], [], 0.0, 0
    for kept in range(1, DIMENSION + 1):
        masks = all_masks(DIMENSION, kept)
        angles = masked_angle(vectors[:, None], masks)  # (vectors, choices)
        top = select(vectors, _sparsity(kept), "chw")
        least = masked_angle(vectors, top)
        tried += angles.numel()
        excess = float((least - angles.amin(1)).max())
        if kept < DIMENSION:  # of a vector with itself, the arc cosine knows only half of the digits
            cosine = torch.cos(torch.deg2rad(angle_between(vectors, vectors * top)))
            ratio = (vectors * top).norm(dim=1) / vectors.norm(dim=1)
            off = max(off, float((cosine - ratio).abs().max()))
        rows.append(
            {
                "kept": kept,
                "choices": len(masks),
                "excess_degrees": excess,
                "top_k_mean": float(least.mean()),
                "all_mean": float(angles.mean()),
                "all_worst": float(angles.amax(1).mean()),
            }
        )
        spreads.append(angles[0].numpy())
    figure, (panel,) = panels(width=4.8)
    for row, angles in zip(rows, spreads, strict=True):
        shown = np.unique(angles.round(1))
        panel.plot(
            np.full(len(shown), row["kept"]), shown, color=FAINT, marker="_", linestyle="", markersize=9
        )
    top = [float(angles.min()) for angles in spreads]
    best = [
        float(masked_angle(vectors[:1], select(vectors[:1], _sparsity(row["kept"]), "chw"))) for row in rows
    ]
    assert np.allclose(top, best, atol=1e-9)
    panel.plot([row["kept"] for row in rows], best, color=COLOURS[0], marker="o", markersize=4, label="Top-K")
    panel.plot([], [], color=FAINT, marker="_", linestyle="", label="every other choice")
    panel.set(xlabel=f"entries kept of {DIMENSION}", ylabel="sparsification angle (degrees)", ylim=(-3, 93))
    legend(panel)
    caption(
        figure,
        f"one normal vector of {DIMENSION} dimensions; the claim is tried on {VECTORS} vectors of four kinds",
    )
    worst = max(row["excess_degrees"] for row in rows)
    findings = [
        Finding(
            "lemma-b1.least",
            worst <= 1e-9,
            f"{tried:,} choices on {VECTORS} vectors; Top-K exceeds the least by {max(worst, 0):.1g}°",
        ),
        Finding("lemma-b1.cosine", off <= 1e-12, f"the two differ by {off:.1g} at most"),
    ]
    return Outcome(rows, findings, figure)


EXPERIMENTS = (Experiment("lemma-b1", "Top-K turns a vector least", lemma),)
