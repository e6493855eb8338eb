"""What the figures of accuracy share: which trainings, how they are drawn, how an order is judged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from torchswat.drawing import COLOURS, FAINT, MARKERS, legend
from torchswat.experiments.outcome import Trained
from torchswat.experiments.paired import sign_flip_test
from torchswat.experiments.scales import Scale, Training

_LIKELY = 0.05
"""An order is taken for real where chance alone would show it less often."""


def grid(
    scale: Scale,
    network: str,
    data: str,
    algorithms: Sequence[str],
    sparsities: Sequence[float],
    scope: str = "nchw",
    own_data: bool = False,
) -> list[Training]:
    """Return a training for each algorithm, sparsity and seed."""
    return [
        Training(network, data, algorithm, sparsity, seed, scope, own_data)
        for algorithm, sparsity, seed in product(algorithms, sparsities, scale.seeds)
    ]


def dense(scale: Scale, network: str, data: str, own_data: bool = False) -> list[Training]:
    """Return the dense training of each seed."""
    return grid(scale, network, data, ["dense"], [0.0], own_data=own_data)


def pick(trained: Sequence[Trained], **asked: Any) -> list[Trained]:
    """Return those whose training has all of the given values."""
    return [t for t in trained if all(getattr(t.training, key) == value for key, value in asked.items())]


def mean(trained: Sequence[Trained]) -> float:
    """Return the mean accuracy over seeds, in per cent."""
    return float(np.mean([each.accuracy for each in trained]))


def lost(trained: Sequence[Trained], **asked: Any) -> float:
    """Return the points of accuracy that trainings lose against the dense ones beside them, on average."""
    mine = pick(trained, **asked)
    return float(np.mean([_dense_twin(trained, each).accuracy - each.accuracy for each in mine]))


def _dense_twin(trained: Sequence[Trained], one: Trained) -> Trained:
    asked = one.training
    twin = pick(trained, network=asked.network, data=asked.data, algorithm="dense", seed=asked.seed)
    return twin[0]


def is_above(
    trained: Sequence[Trained],
    upper: dict[str, Any],
    lower: dict[str, Any],
    at: Sequence[float] | None = None,
) -> tuple[bool, str]:
    """Judge whether one kind of training ends above another, paired by network, data, sparsity and seed.

    Parameters
    ----------
    trained : sequence of Trained
        All there are.
    upper, lower : dict
        What the better and the worse are known by, as `pick` takes it.
    at : sequence of float, optional
        Only at these sparsities.

    Returns
    -------
    bool
        Whether the mean difference is positive and chance would give it in less than one case of twenty.
    str
        Mean difference, number of pairs and that probability, in words.
    """
    differences = []
    for better in pick(trained, **upper):
        asked = better.training
        same = {name: getattr(asked, name) for name in ("network", "data", "sparsity", "seed")}
        if at is None or asked.sparsity in at:
            differences += [better.accuracy - worse.accuracy for worse in pick(trained, **{**same, **lower})]
    likelihood = sign_flip_test(differences)
    found = f"{np.mean(differences):+.2f} points over {len(differences)} pairs (p = {likelihood:.2g})"
    return bool(np.mean(differences) > 0 and likelihood < _LIKELY), found


def draw_over_sparsity(panel: Axes, trained: Sequence[Trained], series: dict[str, dict[str, Any]]) -> None:
    """Draw mean accuracy over sparsity, a line for each of `series`; bars are deviations over the seeds."""
    for index, (label, asked) in enumerate(series.items()):
        mine = pick(trained, **asked)
        sparsities = sorted({each.training.sparsity for each in mine})
        at = [[each.accuracy for each in pick(mine, sparsity=s)] for s in sparsities]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        shift = 0.004 * (index - (len(series) - 1) / 2)  # so that bars do not hide each other
        places, means = [s + shift for s in sparsities], [np.mean(a) for a in at]
        bars = [np.std(a) for a in at]
        panel.errorbar(places, means, bars, color=colour, marker=marker, markersize=5, capsize=2, label=label)
    base = pick(trained, algorithm="dense")
    if base:
        panel.axhline(mean(base), color=FAINT, linestyle="--", label=f"dense {mean(base):.1f} %")
    panel.set_xticks(sorted({t.training.sparsity for t in trained if t.training.algorithm != "dense"}))
    panel.set(xlabel="sparsity", ylabel="test accuracy (%)")
    legend(panel)


def draw_curves(panel: Axes, trained: Sequence[Trained], series: dict[str, dict[str, Any]]) -> None:
    """Draw test accuracy over the epochs, the mean of the seeds, a line for each of `series`."""
    for index, (label, asked) in enumerate(series.items()):
        curve = mean_curve(pick(trained, **asked))
        colour = COLOURS[index % len(COLOURS)]
        panel.plot(range(1, len(curve) + 1), curve, color=colour, marker="o", markersize=3, label=label)
    panel.set(xlabel="epoch", ylabel="test accuracy (%)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(panel)


def mean_curve(trained: Sequence[Trained]) -> np.ndarray:
    """Return the mean accuracy after each epoch; where one broke off it stays at what it ended with."""
    length = max((len(each.curve) for each in trained), default=0)
    padded = [[*each.curve, *[each.accuracy] * (length - len(each.curve))] for each in trained]
    return np.mean(padded, axis=0) if length else np.zeros(0)


def said(scale: Scale, network: str, data: str) -> str:
    """Return in a line what was trained, for the caption of a figure."""
    seeds = "one seed" if len(scale.seeds) == 1 else f"{len(scale.seeds)} seeds, bars: ± a deviation"
    if scale.name == "paper":
        return f"{network} on {data}, the paper's recipe, {seeds}"
    shown = Training(network, data, "dense", 0.0, 0).recipe(scale)
    images = f"{shown.data.train_limit:,} images" if shown.data.train_limit else "all images"
    stand_in = f"{scale.network(network)} for {network}, {scale.stands_for(data)} ({images}) for {data}"
    return (
        f"{scale.name} scale: {stand_in},\n"
        f"{shown.optimizer.epochs} epochs, batch {shown.data.batch_size}; {seeds}"
    )
