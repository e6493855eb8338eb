"""Test accuracy over the seconds of training, and over the operations counted: what sparsity is worth in time.

The opponents are honest: dense training in the faster memory layout, dense training that is given the same
seconds (its whole schedule in fewer epochs), and dense bfloat16 where the processor multiplies it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.axes import Axes

from torchswat.drawing import COLOURS, INK, caption, legend, panels
from torchswat.experiments.accuracies import dense, grid, judge_pairs, pick, said
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.outcome import Experiment, Outcome, Row, Timing, Trained, Work
from torchswat.experiments.scales import Scale, Training
from torchswat.experiments.step_times import name_of, over_epochs, read_step_times, step_times

NETWORK, DATA, SPARSITY = "resnet18", "cifar10", 0.8
LEVELS = (85, 90, 92)
"""Accuracies, in per cent, whose times are reported."""

_SPARSE_SHARE = 0.75  # of the epochs, of a sparse start with a dense end
_ROUNDS = {"smoke": 2}  # timed; elsewhere _MANY
_MANY = 7
_BFLOAT16 = ("precision=bfloat16",)
_BLOCKS = ("sparse.block=[2, 2]",)


# ---- what is trained ---------------------------------------------------------------------------------------


def _epochs(scale: Scale) -> int:
    return dense(scale, NETWORK, DATA)[0].recipe(scale).optimizer.epochs


def _start(scale: Scale) -> tuple[str, ...]:
    """The settings of a sparse start with a dense end."""
    epochs = _epochs(scale)
    return (f"sparse.dense_from={min(epochs - 1, max(1, round(_SPARSE_SHARE * epochs)))}",)


def _shortened(scale: Scale, epochs: int) -> tuple[str, ...]:
    """The settings of a whole schedule in fewer epochs; where the rate falls in steps, they move along."""
    whole = dense(scale, NETWORK, DATA)[0].recipe(scale).optimizer
    falls = sorted({max(1, round(at * epochs / whole.epochs)) for at in whole.milestones})
    return (f"optimizer.epochs={epochs}", *([f"optimizer.milestones={falls}"] if falls else []))


def _trainings(scale: Scale, times: Row | None = None) -> list[Training]:
    """All kinds, the most telling first; the short dense ones and bfloat16 where steps were timed."""
    trainings = _contest(scale, times)
    if times and name_of(dense(scale, NETWORK, DATA, _BFLOAT16)[0].recipe(scale)) in times["steps"]:
        trainings += _contest(scale, times, _BFLOAT16)
        trainings += grid(scale, NETWORK, DATA, ["swat"], [SPARSITY], settings=_BFLOAT16 + _BLOCKS)
    trainings += grid(scale, NETWORK, DATA, ["swat"], [0.9, 0.7, 0.5])
    return trainings + grid(scale, NETWORK, DATA, ["saw"], [0.8])


def _contest(scale: Scale, times: Row | None, precision: tuple[str, ...] = ()) -> list[Training]:
    """Dense and sparse trainings of one precision."""
    trainings = dense(scale, NETWORK, DATA, precision)
    for settings in _contenders(scale, precision):
        trainings += grid(scale, NETWORK, DATA, ["swat"], [SPARSITY], settings=settings)
    for epochs in _short_schedules(scale, times, precision) if times else ():
        trainings += dense(scale, NETWORK, DATA, _shortened(scale, epochs) + precision)
    return trainings


def _contenders(scale: Scale, precision: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The settings of SWAT and of a sparse start with a dense end."""
    return precision, _start(scale) + precision


def _short_schedules(scale: Scale, times: Row, precision: tuple[str, ...]) -> list[int]:
    """Epochs of dense training that end just before and just after the two sparse contenders do."""
    whole, found = _epochs(scale), set()
    base = over_epochs(dense(scale, NETWORK, DATA, precision)[0].recipe(scale), times)
    for settings in _contenders(scale, precision):
        (one, *_) = grid(scale, NETWORK, DATA, ["swat"], [SPARSITY], settings=settings)
        passed = over_epochs(one.recipe(scale), times)
        if base and passed:
            epochs = passed[-1][0] / base[0][0]
            found |= {math.floor(epochs), math.ceil(epochs)}
    return sorted(epochs for epochs in found if 1 <= epochs < whole)


def _read(scale: Scale, folder: Path) -> Row | None:
    return read_step_times(_timed(scale), scale, folder)


def _timed(scale: Scale) -> list[Training]:
    blocks = grid(scale, NETWORK, DATA, ["swat"], [SPARSITY], settings=_BFLOAT16 + _BLOCKS)
    return _trainings(scale) + _contest(scale, None, _BFLOAT16) + blocks


def _measure(scale: Scale, folder: Path) -> Row:
    return step_times(_timed(scale), scale, folder, _ROUNDS.get(scale.name, _MANY))


# ---- what is drawn -----------------------------------------------------------------------------------------


def _kinds(trained: Sequence[Trained]) -> dict[str, list[Trained]]:
    kinds: dict[str, list[Trained]] = {}
    for each in trained:
        kinds.setdefault(_label(each.training), []).append(each)
    return kinds


def _label(training: Training) -> str:
    """What was trained, in the words of a legend."""
    words = _DENSE if training.algorithm == "dense" else training.kind().partition(",")[0]
    words = words.replace("swat", "SWAT").replace("saw", "SAW")
    for setting in training.settings:
        key, _, value = setting.partition("=")
        if key == "optimizer.epochs":
            words += f", {value} epochs"
        elif key == "sparse.dense_from":
            words += f", dense after {value} epochs"
        elif key == "sparse.block":
            words += ", blocks of {}x{}".format(*json.loads(value))
        elif key == "precision":
            words = words.replace("float32", value) if training.algorithm == "dense" else f"{words}, {value}"
    return words


def _is_narrow(label: str) -> bool:
    return "bfloat16" in label


def _draw(panel: Axes, kinds: dict[str, list[Trained]], passed: dict[str, list[float]], narrow: bool) -> None:
    """Draw the mean accuracy after each epoch over what has passed until then; a band from least to most.

    All of one precision; those of bfloat16 with dense float32 beside them. Of dense training in fewer epochs only
    the ends are drawn, with that of its own schedule: what it reaches when it is given so much.
    """
    ends: list[tuple[float, float]] = []
    colours, opponent = iter(COLOURS), _NARROW if narrow else _DENSE
    for label, at in passed.items():
        if _is_narrow(label) != narrow and label != _DENSE:
            continue
        curves = np.array([each.curve for each in kinds[label] if len(each.curve) == len(at)])
        if not len(curves):
            continue
        means = curves.mean(0)
        if label.startswith(opponent):
            ends.append((at[-1], means[-1]))
        if label.startswith(f"{opponent},"):
            continue
        colour, line = (INK, "--") if label == opponent else (next(colours), "-")
        if label == _DENSE != opponent:
            colour, line = "0.6", "--"
        panel.plot(at, means, line, color=colour, linewidth=1.4, label=label)
        panel.plot(at[-1], means[-1], "o", color=colour, markersize=4)
        if len(curves) > 1:
            panel.fill_between(at, curves.min(0), curves.max(0), color=colour, alpha=0.12, linewidth=0)
    if len(ends) > 1:
        label = f"{opponent}, shorter schedules"
        panel.plot(*zip(*sorted(ends), strict=True), color=COLOURS[7], marker="s", markersize=4, label=label)
    best = max((each.accuracy for mine in kinds.values() for each in mine), default=100.0)
    panel.set(ylabel="test accuracy (%)", ylim=((1 - _SHOWN) * best, 1.02 * best), xlim=(0, None))
    legend(panel, fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2)  # below all lines


_DENSE, _NARROW = "dense float32", "dense bfloat16"
_SHOWN = 0.16  # of the highest accuracy: the first epochs tell nothing


# ---- what is said ------------------------------------------------------------------------------------------


def reached(curve: Sequence[float], seconds: Sequence[float], level: float) -> float | None:
    """Return the seconds after which the accuracy holds a level: from that epoch on it is not below it again.

    Examples
    --------
    >>> reached([80.0, 91.0, 89.0, 92.0, 93.0], [1.0, 2.0, 3.0, 4.0, 5.0], 90)
    4.0
    """
    below = [place for place, accuracy in enumerate(curve) if accuracy < level]
    first = below[-1] + 1 if below else 0
    return seconds[first] if first < min(len(curve), len(seconds)) else None


def _row(one: Trained, passed: list[tuple[float, float]] | None) -> Row:
    row = {"kind": _label(one.training), **one.row()}
    if passed:
        seconds = [at for at, _ in passed]
        row |= {"seconds": seconds[-1], "operations": passed[-1][1]}
        row |= {f"seconds_to_{level}": reached(one.curve, seconds, level) for level in LEVELS}
    return row


def _table(rows: Sequence[Row], seeds: int) -> list[Row]:
    """A line a kind: means over the seeds, and a time only where every one of them holds the level."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        ends = [row["accuracy"] for row in mine]
        line: Row = {
            "training": kind + (f" ({len(mine)} of {seeds} seeds)" if len(mine) < seeds else ""),
            "accuracy (%)": f"{fmean(ends):.2f}" + (f" ± {stdev(ends):.2f}" if len(ends) > 1 else ""),
            "minutes": _minutes([row.get("seconds") for row in mine]),
        }
        for level in LEVELS:
            line[f"to {level} %"] = _minutes([row.get(f"seconds_to_{level}") for row in mine])
        operations = mine[0].get("operations")
        line["operations (10¹²)"] = "–" if operations is None else _short(operations / 1e12)
        lines.append(line)
    return lines


def _minutes(seconds: Sequence[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    return _short(fmean(known) / 60) if known and len(known) == len(seconds) else "–"


def _short(number: float) -> str:
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def dense_at(seconds: float, schedules: Sequence[tuple[float, float]]) -> float | None:
    """Return the accuracy of dense training that is given so many seconds.

    Parameters
    ----------
    seconds : float
        Between the shortest and the longest schedule; beyond the longest, its accuracy counts.
    schedules : sequence of tuple of float
        Seconds and final accuracy of whole schedules; between two of them a straight line is taken.

    Examples
    --------
    >>> dense_at(45, [(40, 90.0), (50, 91.0), (80, 93.0)]), dense_at(30, [(40, 90.0)])
    (90.5, None)
    """
    known = sorted(schedules)
    if not known or seconds < known[0][0]:
        return None
    times, ends = zip(*known, strict=True)
    return float(np.interp(seconds, times, ends))


Clock = Callable[[Trained], "list[tuple[float, float]] | None"]


def _against_dense(
    trained: Sequence[Trained], clock: Clock, settings: tuple[str, ...], claim: str
) -> tuple[bool | None, str]:
    """Judge SWAT, or the sparse start of these settings, against dense training of equal seconds, seed by seed.

    Both are of one precision.
    """
    least = claims()[claim].values["points"]
    narrow = _BFLOAT16[0] in settings
    opponents = [
        each
        for each in pick(trained, algorithm="dense")
        if (_BFLOAT16[0] in each.training.settings) == narrow
    ]
    differences, ends = [], []
    for one in pick(trained, algorithm="swat", sparsity=SPARSITY, settings=settings):
        passed = clock(one)
        schedules = [
            (its[-1][0], each.accuracy)
            for each in opponents
            if each.training.seed == one.training.seed and (its := clock(each))
        ]
        level = dense_at(passed[-1][0], schedules) if passed and len(schedules) > 1 else None
        if level is not None:
            differences.append(one.accuracy - level)
            ends.append((one.accuracy, level))
    holds, found = judge_pairs(differences, least)
    if not ends:
        return None, ""
    mine, theirs = (fmean(side) for side in zip(*ends, strict=True))
    opponent = _NARROW if narrow else _DENSE
    return holds, f"{mine:.2f} % against {theirs:.2f} % of {opponent} in the same seconds: {found}"


def _beside_float32(
    trained: Sequence[Trained], settings: tuple[str, ...], claim: str
) -> tuple[bool | None, str]:
    """Judge whether SWAT with these settings ends within some points of SWAT in float32, seed by seed."""
    most = claims()[claim].values["points"]
    plain = {
        each.training.seed: each.accuracy
        for each in pick(trained, algorithm="swat", sparsity=SPARSITY, settings=())
    }
    differences = [
        each.accuracy - plain[each.training.seed]
        for each in pick(trained, algorithm="swat", sparsity=SPARSITY, settings=settings)
        if each.training.seed in plain
    ]
    if not differences:
        return None, ""
    mean = fmean(differences)
    spread = f" ± {stdev(differences):.2f}" if len(differences) > 1 else ""
    seeds = f"{len(differences)} seed" + "s" * (len(differences) > 1)
    return abs(mean) <= most if len(differences) > 1 else None, f"{mean:+.2f}{spread} points, {seeds}"


def _sooner(trained: Sequence[Trained], clock: Clock, level: int) -> tuple[bool | None, str]:
    """Judge whether SWAT holds a level sooner than dense float32 does with its own schedule, seed by seed."""
    speeds, dense_runs = (
        [],
        {each.training.seed: each for each in pick(trained, algorithm="dense", settings=())},
    )
    for one in pick(trained, algorithm="swat", sparsity=SPARSITY, settings=()):
        other = dense_runs.get(one.training.seed)
        if other is None or (mine := clock(one)) is None or (theirs := clock(other)) is None:
            continue
        times = [reached(t.curve, [s for s, _ in its], level) for t, its in ((one, mine), (other, theirs))]
        if times[0] is None:
            return False, f"SWAT does not hold {level} % (seed {one.training.seed})"
        speeds.append(math.inf if times[1] is None else times[1] / times[0])
    if not speeds:
        return None, ""
    low, high = min(speeds), max(speeds)
    factor = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return low > 1, f"{factor} times as fast to {level} %, {len(speeds)} seed" + "s" * (len(speeds) > 1)


def time_to_accuracy(work: Work) -> Outcome:
    """The figure."""
    scale, times = work.scale, _measure(work.scale, work.folder)

    def clock(one: Trained) -> list[tuple[float, float]] | None:
        return over_epochs(one.training.recipe(scale), times)

    rows = [_row(one, clock(one)) for one in work.trained]
    kinds = _kinds(work.trained)
    passed = {label: its for label, mine in kinds.items() if (its := clock(mine[0]))}
    sides: list[tuple[int, float, str, bool]] = [
        (0, 60, "minutes of training", False),
        (1, 1e12, "operations counted (10¹² multiply-accumulates)", False),
    ]
    if any(map(_is_narrow, passed)):
        sides.insert(1, (0, 60, "minutes of training, in bfloat16", True))
    figure, axes = panels(len(sides), width=4.6, height=4.6)
    for panel, (place, unit, label, narrow) in zip(axes, sides, strict=True):
        over = {label: [at[place] / unit for at in its] for label, its in passed.items()}
        _draw(panel, kinds, over, narrow)
        panel.set_xlabel(label)
    situation = times["circumstances"]
    caption(
        figure,
        f"Seconds: steps times the median of {situation['repeats']} interleaved steps on {situation['processor']}, "
        f"threads: {situation['threads']}, {situation['engine']['isa']}, with {times['data_ms']:.0f} ms for reading "
        "and augmenting a batch, without evaluation. A dense step is in its faster layout. Mean of the seeds, band "
        f"from least to most; {said(work)}",
    )
    findings = []
    for claim, settings in (
        ("swat", ()),
        ("start", _start(scale)),
        ("bfloat16", _BFLOAT16),
        ("bfloat16-start", _start(scale) + _BFLOAT16),
    ):
        claim = f"time-to-accuracy.{claim}"
        findings.append(Finding(claim, *_against_dense(work.trained, clock, settings, claim)))
    for claim, settings in (("rounding", _BFLOAT16), ("blocks", _BFLOAT16 + _BLOCKS)):
        claim = f"time-to-accuracy.{claim}"
        findings.append(Finding(claim, *_beside_float32(work.trained, settings, claim)))
    findings.append(Finding("time-to-accuracy.90", *_sooner(work.trained, clock, LEVELS[1])))
    return Outcome(rows, findings, figure, _remarks(times), _table(rows, len(scale.seeds)))


def _remarks(times: Row) -> list[str]:
    base = times["steps"][_DENSE]
    speeds = [
        f"{name} {step['ms']:.0f} ms ({base['ms'] / step['ms']:.2f}x)"
        for name, step in times["steps"].items()
    ]
    worst = max(step["spread"] for step in times["steps"].values())
    share = 100 * times["data_ms"] / (base["ms"] + times["data_ms"])
    return [
        f"A step of {times['batch_size']} images: {', '.join(speeds)}; quartiles of the rounds are at most "
        f"{100 * worst:.0f} % of the median apart.",
        f"Reading and augmenting a batch takes {times['data_ms']:.0f} ms, {share:.1f} % of a dense step.",
        "Dense training in the same seconds: schedules are whole epochs, so those that end just before and just "
        "after are trained, each with its whole schedule, and a straight line between their accuracies is taken.",
        "A level counts as held from the epoch on after which the accuracy is not below it again; – where a seed "
        "does not hold it.",
        *(f"Not timed: {reason}." for reason in times["remarks"]),
    ]


EXPERIMENTS = (
    Experiment(
        "time-to-accuracy",
        "Accuracy over the seconds of training",
        time_to_accuracy,
        _trainings,
        Timing(_read, _measure, _trainings),
    ),
)
