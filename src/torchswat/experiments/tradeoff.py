"""Figures 4, 5 and 6a, and pruning for inference: accuracy of SWAT and SAW over sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchswat.drawing import COLOURS, caption, legend, panels
from torchswat.experiments.accuracies import (
    dense,
    draw_curves,
    draw_over_sparsity,
    grid,
    lost,
    mean_curve,
    pick,
    said,
)
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.outcome import Experiment, Outcome, Trained, Work
from torchswat.experiments.scales import Scale, Training

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of Figure 4, whose claims name 60 %
BOTH = ("swat", "saw")


def _networks(scale: Scale, names: tuple[str, ...]) -> list[str]:
    """The networks of a figure, each stand-in once."""
    return list({scale.network(name): name for name in reversed(names)}.values())[::-1]


def _series(algorithms: Sequence[str] = BOTH) -> dict[str, dict[str, str]]:
    return {algorithm.upper(): {"algorithm": algorithm} for algorithm in algorithms}


def _points(values: Sequence[float]) -> str:
    return f"{min(values):+.2f}" if len(values) == 1 else f"{min(values):+.2f} to {max(values):+.2f}"


# ---- Figure 4 ----------------------------------------------------------------------------------------------

_CIFAR = ("cifar10", "cifar100")
_FIGURE_4 = ("resnet18", "vgg16", "densenet121")


def _cifar(scale: Scale) -> list[Training]:
    return [
        training
        for data in _CIFAR
        for network in _networks(scale, _FIGURE_4)
        for training in dense(scale, network, data, own_data=True)
        + grid(scale, network, data, BOTH, SPARSITIES, own_data=True)
    ]


def cifar(work: Work) -> Outcome:
    """Figure 4."""
    networks = _networks(work.scale, _FIGURE_4)
    figure, axes = panels(len(_CIFAR), len(networks), width=4.4)
    places = [(data, network) for network in networks for data in _CIFAR]
    for panel, (data, network) in zip(axes, places, strict=True):
        draw_over_sparsity(panel, pick(work.trained, data=data, network=network), _series())
        panel.set_title(f"{work.scale.stands_for(data, own=True)}, {work.scale.network(network)}")
    caption(figure, said(work.scale, networks[0], "cifar10"))
    losses = {
        (data, network, algorithm, sparsity): lost(
            work.trained, data=data, network=network, algorithm=algorithm, sparsity=sparsity
        )
        for data, network in places
        for algorithm in BOTH
        for sparsity in SPARSITIES
    }
    known, findings = claims(), []
    limits = {
        "4.50": lambda data, algorithm: 0.0,
        "4.60": lambda data, algorithm: known["4.60"].values["points"],
        "4.70": lambda data, algorithm: known["4.70"].values[data],
        "4.80": lambda data, algorithm: known["4.80"].values[algorithm],
    }
    for name, limit in limits.items():
        at = {where: loss for where, loss in losses.items() if f"4.{100 * where[3]:.0f}" == name}
        holds = all(loss <= limit(data, algorithm) for (data, _, algorithm, _), loss in at.items())
        parts = [
            f"{a.upper()} {_points([loss for where, loss in at.items() if where[::2] == (d, a)])} on {d}"
            for d in _CIFAR
            for a in BOTH
        ]
        findings.append(Finding(name, holds, "points lost: " + ", ".join(parts)))
    return Outcome([t.row() for t in work.trained], findings, figure)


# ---- Figure 5 ----------------------------------------------------------------------------------------------

_FIGURE_5 = ("resnet18", "vgg16", "densenet121")


def _imagenet(scale: Scale) -> list[Training]:
    trainings = []
    for network in _networks(scale, _FIGURE_5):
        trainings += dense(scale, network, "imagenet") + grid(scale, network, "imagenet", BOTH, (0.5, 0.7))
    return trainings + grid(scale, "resnet18", "imagenet", ["dsg"], [0.5])


def imagenet(work: Work) -> Outcome:
    """Figure 5."""
    trained, networks = work.trained, _networks(work.scale, _FIGURE_5)
    figure, axes = panels(2, len(networks), width=4.6)
    curves = {"dense": {"algorithm": "dense"}} | {
        f"SWAT {100 * s:.0f} %": {"algorithm": "swat", "sparsity": s} for s in (0.5, 0.7)
    }
    for row, network in enumerate(networks):
        mine = pick(trained, network=network)
        draw_curves(axes[2 * row], mine, curves)
        algorithms = (*BOTH, "dsg") if pick(mine, algorithm="dsg") else BOTH
        draw_over_sparsity(axes[2 * row + 1], mine, _series(algorithms))
        axes[2 * row].set_title(f"{work.scale.stands_for('imagenet')}, {work.scale.network(network)}")
    caption(figure, said(work.scale, networks[0], "imagenet"))
    swat = {
        s: [lost(trained, network=network, algorithm="swat", sparsity=s) for network in networks]
        for s in (0.5, 0.7)
    }
    at_half = {a: lost(trained, network="resnet18", algorithm=a, sparsity=0.5) for a in ("swat", "dsg")}
    rates = [
        _epochs_to_converge(pick(trained, network=n, **asked)) for n in networks for asked in curves.values()
    ]
    known = claims()
    allowed = max(1, round(0.1 * max(len(t.curve) for t in trained)))  # epochs, ours
    findings = [
        Finding(
            f"5.{100 * s:.0f}",
            max(losses) <= known[f"5.{100 * s:.0f}"].values["points"],
            f"SWAT loses {_points(losses)} points",
        )
        for s, losses in swat.items()
    ]
    findings += [
        Finding(
            "5.dsg",
            at_half["swat"] < at_half["dsg"],
            f"SWAT loses {at_half['swat']:+.2f} points, DSG {at_half['dsg']:+.2f}",
        ),
        Finding(
            "5.rate",
            max(rates) - min(rates) <= allowed,
            f"after {min(rates)} to {max(rates)} epochs all have reached 95 % of where they end",
        ),
    ]
    return Outcome([t.row() for t in trained], findings, figure)


def _epochs_to_converge(trained: Sequence[Trained]) -> int:
    """The first epoch from which on the mean curve stays above 95 % of its end."""
    curve = mean_curve(trained)
    below = np.nonzero(curve < 0.95 * curve[-1])[0]
    return int(below[-1]) + 2 if len(below) else 1


# ---- Figure 6a ---------------------------------------------------------------------------------------------

_DEEP, _WIDE = ("resnet50", "resnet101"), "wrn28-10"


def _depth_and_width(scale: Scale) -> list[Training]:
    trainings = []
    for network in _networks(scale, (*_DEEP, _WIDE)):
        trainings += dense(scale, network, "cifar100") + grid(
            scale, network, "cifar100", BOTH, (0.5, 0.7, 0.8)
        )
    return trainings


def depth_and_width(work: Work) -> Outcome:
    """Figure 6a."""
    trained, networks = work.trained, _networks(work.scale, (*_DEEP, _WIDE))
    figure, axes = panels(len(networks), width=3.8)
    for panel, network in zip(axes, networks, strict=True):
        draw_over_sparsity(panel, pick(trained, network=network), _series())
        panel.set_title(
            f"{work.scale.network(network)}" + ("" if work.scale.name == "paper" else f" for {network}")
        )
    caption(figure, said(work.scale, networks[0], "cifar100"))
    at = {(n, a): lost(trained, network=n, algorithm=a, sparsity=0.7) for n in networks for a in BOTH}
    deep = [loss for (network, _), loss in at.items() if network in _DEEP]
    limits = claims()["6a.width"].values
    # where the smoke scale has one stand-in for all, the wide network is not among them
    wide = {a: at[_WIDE, a] for a in BOTH} if _WIDE in networks else None
    findings = [Finding("6a.depth", max(deep) < 0, f"points lost at 70 %: {_points(deep)}")]
    if wide:
        text = ", ".join(f"{a.upper()} {wide[a]:+.2f}" for a in BOTH)
        findings.append(Finding("6a.width", all(wide[a] <= limits[a] for a in BOTH), f"points lost: {text}"))
    return Outcome([t.row() for t in trained], findings, figure)


# ---- inference ---------------------------------------------------------------------------------------------


def _swat(scale: Scale) -> list[Training]:
    return grid(scale, "resnet18", "cifar10", ["swat"], SPARSITIES) + grid(
        scale, "resnet18", "cifar10", ["saw"], SPARSITIES
    )


def inference(work: Work) -> Outcome:
    """A network as it was trained against its pruned twin, made of plain torch modules."""
    figure, (panel,) = panels(width=5.4)
    for colour, algorithm in zip(COLOURS, BOTH, strict=False):
        mine = pick(work.trained, algorithm=algorithm)
        at = {s: pick(mine, sparsity=s) for s in SPARSITIES}
        for kind, line in (("accuracy", "-"), ("pruned", ":")):
            means = [np.mean([getattr(t, kind) for t in at[s]]) for s in SPARSITIES]
            label = f"{algorithm.upper()}, {'as trained' if kind == 'accuracy' else 'pruned'}"
            panel.plot(SPARSITIES, means, line, color=colour, marker="o" if line == "-" else "x", label=label)
    panel.set(xlabel="sparsity", ylabel="test accuracy (%)")
    legend(panel)
    caption(figure, said(work.scale, "resnet18", "cifar10"))
    changes = [t.pruned - t.accuracy for t in pick(work.trained, algorithm="swat")]
    text = f"pruning changes the accuracy by {_points(changes)} points in {len(changes)} networks"
    remark = "SAW, whose forward pass is dense, is drawn for contrast: it does not learn a pruned network."
    rows = [t.row() for t in work.trained]
    return Outcome(rows, [Finding("inference.lossless", min(changes) >= 0, text)], figure, [remark])


EXPERIMENTS = (
    Experiment("4", "SWAT and SAW on CIFAR-10 and CIFAR-100", cifar, _cifar),
    Experiment("5", "SWAT, SAW and DSG on ImageNet", imagenet, _imagenet),
    Experiment("6a", "Depth and width", depth_and_width, _depth_and_width),
    Experiment("inference", "Pruning after training", inference, _swat),
)
