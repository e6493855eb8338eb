"""What the figures of accuracy share: which trainings, how they are drawn, how an order is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from torchswat.drawing import COLOURS, FAINT, INK, MARKERS, legend
from torchswat.experiments.claims import Finding, all_hold
from torchswat.experiments.outcome import Trained, Work
from torchswat.experiments.paired import sign_flip_test, t_test
from torchswat.experiments.scales import Scale, Training, reductions

LIKELY = 0.05
"""An order is taken for real where chance alone would show it less often."""

_FLIPPED = 5
"""Of fewer pairs, flipping signs never finds anything as rare as that; Student's test is asked instead."""


def grid(
    scale: Scale,
    network: str,
    data: str,
    algorithms: Sequence[str],
    sparsities: Sequence[float],
    scope: str = "nchw",
    settings: tuple[str, ...] = (),
) -> list[Training]:
    """Return a training for each algorithm, sparsity and seed."""
    return [
        Training(network, data, algorithm, sparsity, seed, scope, settings)
        for algorithm, sparsity, seed in product(algorithms, sparsities, scale.seeds)
    ]


def dense(scale: Scale, network: str, data: str, settings: tuple[str, ...] = ()) -> list[Training]:
    """Return the dense training of each seed."""
    return grid(scale, network, data, ["dense"], [0.0], settings=settings)


def pick(trained: Sequence[Trained], **asked: Any) -> list[Trained]:
    """Return those whose training has all of the given values."""
    return [t for t in trained if all(getattr(t.training, key) == value for key, value in asked.items())]


def mean(trained: Sequence[Trained]) -> float:
    """Return the mean accuracy over seeds, in per cent; NaN of none."""
    return float(np.mean([each.accuracy for each in trained])) if trained else float("nan")


@dataclass(frozen=True)
class Loss:
    """Points of accuracy lost against what is compared with, one number a pair of trainings of a seed.

    Without any pair, where trainings have not been run yet, the mean is NaN and says so in words.
    """

    points: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the pairs."""
        return float(np.mean(self.points)) if self.points else float("nan")

    @property
    def error(self) -> float | None:
        """Standard error of the mean; unknown of a single pair."""
        count = len(self.points)
        return float(np.std(self.points, ddof=1) / np.sqrt(count)) if count > 1 else None

    def exceeds(self, limit: float) -> bool:
        """Whether the mean lies beyond `limit`."""
        return self.mean > limit + 1e-9  # so much may be rounding

    def is_noise(self, limit: float) -> bool:
        """Whether the mean is nearer to `limit` than its standard error, or nothing is known of that."""
        return self.error is None or abs(self.mean - limit) < self.error

    def __str__(self) -> str:
        if not self.points:
            return "an unknown number of"
        return f"{self.mean:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def lost(trained: Sequence[Trained], **asked: Any) -> Loss:
    """Return the points of accuracy that trainings lose against the dense ones of the same seeds."""
    twins = [(_dense_twin(trained, each), each) for each in pick(trained, **asked)]
    return Loss(tuple(twin.accuracy - each.accuracy for twin, each in twins if twin))


def _dense_twin(trained: Sequence[Trained], one: Trained) -> Trained | None:
    """The dense training of the same network, data and seed, where it has been run."""
    asked = one.training
    twin = pick(trained, network=asked.network, data=asked.data, algorithm="dense", seed=asked.seed)
    return twin[0] if twin else None


def at_most(claim: str, losses: Mapping[str, tuple[Loss, float]]) -> Finding:
    """Judge whether each mean loss is within its limit, and say where the noise is larger than the margin.

    Where some were not run, the others can only show that the claim does not hold.

    Parameters
    ----------
    claim : str
        What is judged.
    losses : mapping of str to tuple
        By what was trained: the loss, and how many points it may be at most.

    Examples
    --------
    >>> at_most("4.60", {"SWAT": (Loss((0.25, 0.5, 0.75)), 0.5)}).observed
    'points lost: SWAT +0.50 ± 0.14 (limit 0.5, within the noise of 3 seeds)'
    """
    said = []
    there = {label: (loss, limit) for label, (loss, limit) in losses.items() if loss.points}
    for label, (loss, limit) in there.items():
        count = len(loss.points)
        seeds = f"{count} seeds" if count > 1 else "one seed"
        noise = f", within the noise of {seeds}" if loss.is_noise(limit) else ""
        said.append(f"{label} {loss} (limit {limit:g}{noise})")
    within = [not loss.exceeds(limit) if loss.points else None for loss, limit in losses.values()]
    missing = [label for label in losses if label not in there]
    said += [f"not run: {label}" for label in missing] if there else []
    return Finding(claim, all_hold(within), "points lost: " + ", ".join(said) if there else "")


def is_above(
    trained: Sequence[Trained],
    upper: dict[str, Any],
    lower: dict[str, Any],
    at: Sequence[float] | None = None,
) -> tuple[bool | None, str]:
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
    bool or None
        Whether the mean difference is positive and chance would give it in less than one case of twenty; None
        of fewer than two pairs, which cannot tell.
    str
        Mean difference, number of pairs and that probability, in words.
    """
    differences = []
    for better in pick(trained, **upper):
        asked = better.training
        same = {name: getattr(asked, name) for name in ("network", "data", "sparsity", "seed")}
        if at is None or asked.sparsity in at:
            differences += [better.accuracy - worse.accuracy for worse in pick(trained, **{**same, **lower})]
    return judge_pairs(differences)


def judge_pairs(differences: Sequence[float], least: float = 0.0) -> tuple[bool | None, str]:
    """Judge whether differences between pairs are at least `least` points on average, and not by chance positive.

    Returns what `is_above` does.

    Examples
    --------
    >>> judge_pairs([1.0, 2.0, 1.5])
    (True, "+1.50 points over 3 pairs (p = 0.018, Student's t)")
    """
    count = len(differences)
    if count == 0:
        return None, "an unknown number of points (not run yet)"
    mean_difference = float(np.mean(differences))
    if count == 1:
        return None, f"{mean_difference:+.2f} points in one pair, which cannot tell"
    is_few = count < _FLIPPED
    likelihood = t_test(differences) if is_few else sign_flip_test(differences)
    test = ", Student's t" if is_few else ""
    found = f"{mean_difference:+.2f} points over {count} pairs (p = {likelihood:.2g}{test})"
    return bool(mean_difference > 0 and mean_difference >= least and likelihood < LIKELY), found


def draw_over_sparsity(panel: Axes, trained: Sequence[Trained], series: dict[str, dict[str, Any]]) -> None:
    """Draw mean accuracy over sparsity, a line for each of `series`; bars and band: deviations over seeds."""
    ticks = sorted({t.training.sparsity for t in trained if t.training.algorithm != "dense"})
    apart = 0.004 if len(ticks) > 1 else 0.012
    for index, (label, asked) in enumerate(series.items()):
        mine = pick(trained, **asked)
        if not mine:
            continue
        sparsities = sorted({each.training.sparsity for each in mine})
        at = [[each.accuracy for each in pick(mine, sparsity=s)] for s in sparsities]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        shift = apart * (index - (len(series) - 1) / 2)  # so that bars do not hide each other
        places, means = [s + shift for s in sparsities], [np.mean(a) for a in at]
        bars = [_deviation(a) for a in at]
        panel.errorbar(places, means, bars, color=colour, marker=marker, markersize=5, capsize=2, label=label)
    base = pick(trained, algorithm="dense")
    if base:
        level, spread = mean(base), _deviation([each.accuracy for each in base])
        panel.axhline(level, color=INK, linestyle="--", linewidth=1, label=f"dense {level:.1f} %")
        panel.axhspan(level - spread, level + spread, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
    if ticks:
        panel.set_xticks(ticks)
    if len(ticks) == 1:  # or the shifts would fill the panel
        panel.set_xlim(ticks[0] - 0.05, ticks[0] + 0.05)
    panel.set(xlabel="sparsity", ylabel="test accuracy (%)")
    legend(panel)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; nothing is drawn for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw_curves(panel: Axes, trained: Sequence[Trained], series: dict[str, dict[str, Any]]) -> None:
    """Draw test accuracy over the epochs, the mean of the seeds, a line for each of `series`."""
    for index, (label, asked) in enumerate(series.items()):
        curve = mean_curve(pick(trained, **asked))
        if not len(curve):
            continue
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


BARS = "bars and band: ± a standard deviation"


def said(work: Work, drawn: str = "") -> str:
    """Return what a caption must say of the trainings: all that the scale changes, and how many seeds.

    Parameters
    ----------
    work : Work
        Its scale and its trainings.
    drawn : str, optional
        How the seeds are drawn, where there are several.
    """
    scale, count = work.scale, len({each.training.seed for each in work.trained})
    changes = reductions(scale, [each.training for each in work.trained])
    seeds = "one seed" if count == 1 else f"{count} seeds" + (f", {drawn}" if drawn else "")
    if not changes:
        return f"the paper's recipe; {seeds}"
    listed = "; ".join(changes).replace("(paper: ", "(")
    return f"scale {scale.name} (in brackets: the paper): {listed}; {seeds}"


def small_print(work: Work) -> list[str]:
    """Return what must be known of points lost by networks that learnt less than the paper's."""
    if work.scale.name == "paper":
        return []
    base = pick(work.trained, algorithm="dense")
    places = dict.fromkeys((each.training.network, each.training.data) for each in base)
    scale = work.scale
    ends = [
        f"{mean(pick(base, network=n, data=d)):.1f} % ({scale.network(n)} on {scale.stands_for(d)})"
        for n, d in places
    ]
    if not ends:
        return []
    return [
        f"At this scale the dense networks reach {', '.join(ends)}. Points are lost against that; a limit in "
        "points is easier to keep where less has been learnt."
    ]
