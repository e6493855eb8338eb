"""Figures 4, 5 and 6a, and pruning for inference: accuracy of SWAT and SAW over sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchswat.drawing import COLOURS, caption, legend, panels
from torchswat.experiments.accuracies import (
    BARS,
    LIKELY,
    at_most,
    dense,
    draw_curves,
    draw_over_sparsity,
    grid,
    is_above,
    lost,
    mean_curve,
    pick,
    said,
    small_print,
)
from torchswat.experiments.claims import Finding, all_hold, claims
from torchswat.experiments.outcome import Experiment, Outcome, Trained, Work
from torchswat.experiments.paired import sign_flip_test
from torchswat.experiments.scales import Scale, Training

BOTH = ("swat", "saw")


def _networks(scale: Scale, names: tuple[str, ...]) -> list[str]:
    """The networks of a figure, each stand-in once."""
    return list({scale.network(name): name for name in reversed(names)}.values())[::-1]


def _series(algorithms: Sequence[str] = BOTH) -> dict[str, dict[str, str]]:
    return {algorithm.upper(): {"algorithm": algorithm} for algorithm in algorithms}


def _label(algorithm: str, network: str, networks: Sequence[str], more: str = "") -> str:
    """What was trained, in words; the network only where there are several."""
    return algorithm.upper() + (f" {network}" if len(networks) > 1 else "") + more


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
        for training in dense(scale, network, data) + grid(scale, network, data, BOTH, scale.tradeoff)
    ]


def cifar(work: Work) -> Outcome:
    """Figure 4."""
    networks = _networks(work.scale, _FIGURE_4)
    figure, axes = panels(len(_CIFAR), len(networks), width=4.4)
    places = [(data, network) for network in networks for data in _CIFAR]
    for panel, (data, network) in zip(axes, places, strict=True):
        draw_over_sparsity(panel, pick(work.trained, data=data, network=network), _series())
        panel.set_title(f"{work.scale.stands_for(data)}, {work.scale.network(network)}")
    caption(figure, said(work, BARS))
    losses = {
        (data, network, algorithm, sparsity): lost(
            work.trained, data=data, network=network, algorithm=algorithm, sparsity=sparsity
        )
        for data, network in places
        for algorithm in BOTH
        for sparsity in work.scale.tradeoff
    }
    known, findings = claims(), []
    limits = {
        "4.50": lambda data, algorithm: 0.0,
        "4.60": lambda data, algorithm: known["4.60"].values["points"],
        "4.70": lambda data, algorithm: known["4.70"].values[data],
        "4.80": lambda data, algorithm: known["4.80"].values[algorithm],
    }
    for name, limit in limits.items():
        at = {
            _label(algorithm, network, networks, f" on {data}"): (loss, limit(data, algorithm))
            for (data, network, algorithm, sparsity), loss in losses.items()
            if f"4.{100 * sparsity:.0f}" == name
        }
        if at:
            findings.append(at_most(name, at))
    return Outcome([t.row() for t in work.trained], findings, figure, small_print(work))


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
    caption(figure, said(work, BARS))
    better, found = is_above(
        pick(trained, network="resnet18"), {"algorithm": "swat"}, {"algorithm": "dsg"}, [0.5]
    )
    at_half = {a: lost(trained, network="resnet18", algorithm=a, sparsity=0.5) for a in ("swat", "dsg")}
    kinds = [pick(trained, network=n, **asked) for n in networks for asked in curves.values()]
    rates = [_epochs_to_converge(kind) for kind in kinds if kind]
    known = claims()
    allowed = max(1, round(0.1 * max(len(t.curve) for t in trained)))  # epochs, ours
    findings = []
    for sparsity in (0.5, 0.7):
        name, asked = f"5.{100 * sparsity:.0f}", {"algorithm": "swat", "sparsity": sparsity}
        limit = known[name].values["points"]
        at = {_label("swat", n, networks): (lost(trained, network=n, **asked), limit) for n in networks}
        findings.append(at_most(name, at))
    findings += [
        Finding(
            "5.dsg",
            better,
            f"SWAT loses {at_half['swat']} points, DSG {at_half['dsg']}; SWAT ends {found} above",
        ),
        Finding(
            "5.rate",
            max(rates) - min(rates) <= allowed if len(rates) == len(kinds) else None,
            f"after {min(rates)} to {max(rates)} epochs all have reached 95 % of where they end",
        ),
    ]
    return Outcome([t.row() for t in trained], findings, figure, small_print(work))


def _epochs_to_converge(trained: Sequence[Trained]) -> int:
    """The first epoch from which on the mean curve stays above 95 % of its end."""
    curve = mean_curve(trained)
    below = np.nonzero(curve < 0.95 * curve[-1])[0]
    return int(below[-1]) + 2 if len(below) else 1


# ---- Figure 6a ---------------------------------------------------------------------------------------------

_DEEP, _WIDE = ("resnet50", "resnet101"), "wrn28-10"
_CLAIMED = 0.7  # the sparsity of its claims
_ENOUGH = 5  # pairs of which a test of signs can tell


def _depth_and_width(scale: Scale) -> list[Training]:
    trainings, sparsities = [], (_CLAIMED,) if scale.only_claims else (0.5, _CLAIMED, 0.8)
    for network in _networks(scale, (*_DEEP, _WIDE)):
        trainings += dense(scale, network, "cifar100")
        trainings += grid(scale, network, "cifar100", BOTH, sparsities)
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
    caption(figure, said(work, BARS))
    at = {(n, a): lost(trained, network=n, algorithm=a, sparsity=_CLAIMED) for n in networks for a in BOTH}
    deep = {where: loss for where, loss in at.items() if where[0] in _DEEP}
    limits = claims()["6a.width"].values
    gained = [-points for loss in deep.values() for points in loss.points]
    likelihood = sign_flip_test(gained) if gained else 1.0
    above = [loss.mean < 0 if loss.points else None for loss in deep.values()]
    text = ", ".join(f"{_label(a, n, networks)} {loss}" for (n, a), loss in deep.items() if loss.points)
    findings = [
        Finding(
            "6a.depth",
            all_hold([*above, likelihood < LIKELY if len(gained) >= _ENOUGH else None]),
            f"points lost at {100 * _CLAIMED:g} %: {text}; over all {len(gained)} pairs p = {likelihood:.2g}"
            if gained
            else "",
        )
    ]
    if _WIDE in networks:  # where the smoke scale has one stand-in for all, it is not
        findings.append(at_most("6a.width", {a.upper(): (at[_WIDE, a], limits[a]) for a in BOTH}))
    return Outcome([t.row() for t in trained], findings, figure, small_print(work))


# ---- inference ---------------------------------------------------------------------------------------------


def _pruned(scale: Scale) -> list[Training]:
    highest = tuple(dict.fromkeys((*scale.tradeoff, 0.9)))
    return grid(scale, "resnet18", "cifar10", ["swat"], highest) + grid(
        scale, "resnet18", "cifar10", ["saw"], scale.tradeoff
    )


def inference(work: Work) -> Outcome:
    """A network as it was trained against its pruned twin, made of plain torch modules."""
    figure, (panel,) = panels(width=4.8)
    for colour, algorithm in zip(COLOURS, BOTH, strict=False):
        mine = pick(work.trained, algorithm=algorithm)
        at = {s: pick(mine, sparsity=s) for s in sorted({t.training.sparsity for t in mine})}
        for kind, line in (("accuracy", "-"), ("pruned", ":")):
            means = [np.mean([getattr(t, kind) for t in trained]) for trained in at.values()]
            label = f"{algorithm.upper()}, {'as trained' if kind == 'accuracy' else 'pruned'}"
            panel.plot([*at], means, line, color=colour, marker="o" if line == "-" else "x", label=label)
    panel.set(xlabel="sparsity", ylabel="test accuracy (%)")
    legend(panel)
    caption(figure, said(work, "their mean"))
    changes = [t.pruned - t.accuracy for t in pick(work.trained, algorithm="swat")]
    claim = claims()["inference.lossless"]
    holds = min(changes) >= -claim.tolerance if changes else None
    text = f"pruning changes the accuracy by {_points(changes)} points in {len(changes)} networks"
    remark = "SAW, whose forward pass is dense, is drawn for contrast: it does not learn a pruned network."
    rows = [t.row() for t in work.trained]
    return Outcome(rows, [Finding(claim.name, holds, text if changes else "")], figure, [remark])


EXPERIMENTS = (
    Experiment("4", "SWAT and SAW on CIFAR-10 and CIFAR-100", cifar, _cifar),
    Experiment("5", "SWAT, SAW and DSG on ImageNet", imagenet, _imagenet),
    Experiment("6a", "Depth and width", depth_and_width, _depth_and_width),
    Experiment("inference", "Pruning after training", inference, _pruned),
)
