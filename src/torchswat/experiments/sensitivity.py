"""Figures 2a, 2b, 2c and 3: which tensors may be sparse, where, and how their entries may be chosen."""

from __future__ import annotations

from torchswat.drawing import caption, panels
from torchswat.experiments.accuracies import (
    BARS,
    dense,
    draw_curves,
    draw_over_sparsity,
    grid,
    is_above,
    lost,
    mean,
    pick,
    said,
)
from torchswat.experiments.claims import Finding, all_hold, claims
from torchswat.experiments.outcome import Experiment, Outcome, Work
from torchswat.experiments.scales import Scale, Training

NETWORK, DATA = "resnet18", "cifar100"
HIGH = 0.8
"""From this sparsity on the paper's Figure 3 is read as "high"."""


def _sensitivity(scale: Scale, algorithms: tuple[str, str]) -> list[Training]:
    return dense(scale, NETWORK, DATA) + grid(scale, NETWORK, DATA, algorithms, scale.sparsities)


def _order(work: Work, claim: str, better: str, worse: str, labels: tuple[str, str]) -> Outcome:
    """One of two algorithms is to end above the other, at every sparsity tried."""
    holds, found = is_above(work.trained, {"algorithm": better}, {"algorithm": worse})
    figure, (panel,) = panels(width=4.8)
    series = {labels[0]: {"algorithm": better}, labels[1]: {"algorithm": worse}}
    draw_over_sparsity(panel, work.trained, series)
    caption(figure, said(work, BARS))
    return Outcome([t.row() for t in work.trained], [Finding(claim, holds, found)], figure)


def forward(work: Work) -> Outcome:
    """Figure 2a."""
    labels = "sparse weights (forward)", "sparse activations (forward)"
    return _order(work, "2a.order", "forward-weight", "forward-activation", labels)


def backward(work: Work) -> Outcome:
    """Figure 2b."""
    labels = "sparse weights and activations (SAW)", "sparse output gradients (meProp)"
    return _order(work, "2b.order", "saw", "meprop", labels)


def _imagenet(scale: Scale) -> list[Training]:
    wanted = (("dense", 0.0), ("meprop", 0.3), ("meprop", 0.5), ("saw", 0.8))
    return [t for name, s in wanted for t in grid(scale, NETWORK, "imagenet", [name], [s])]


def training_curves(work: Work) -> Outcome:
    """Figure 2c. The paper's accuracies are ImageNet's, so only there can they be judged."""
    trained, on_imagenet = work.trained, work.scale.stands_for("imagenet") == "imagenet"
    series = {
        "dense": {"algorithm": "dense"},
        "meProp 30 %": {"algorithm": "meprop", "sparsity": 0.3},
        "meProp 50 %": {"algorithm": "meprop", "sparsity": 0.5},
        "SAW 80 %": {"algorithm": "saw", "sparsity": 0.8},
    }
    figure, (panel,) = panels(width=4.8)
    draw_curves(panel, trained, series)
    caption(figure, said(work, "their mean"))
    ends = {label: mean(pick(trained, **asked)) for label, asked in series.items()}
    there = {label: bool(pick(trained, **asked)) for label, asked in series.items()}
    loss = lost(trained, algorithm="meprop", sparsity=0.3)
    limit, reached = claims()["2c.meprop-50"].values["accuracy"], claims()["2c.saw-80"].values["accuracy"]
    where = (
        ""
        if on_imagenet
        else f" on {work.scale.stands_for('imagenet')}, where the paper's number means nothing"
    )
    findings = [
        # "a good solution" is read as one that keeps nine tenths of the dense accuracy
        Finding(
            "2c.meprop-30",
            ends["meProp 30 %"] >= 0.9 * ends["dense"] if loss.points else None,
            f"loses {loss} points against dense",
        ),
        Finding(
            "2c.meprop-50",
            ends["meProp 50 %"] < limit if on_imagenet and there["meProp 50 %"] else None,
            f"{ends['meProp 50 %']:.2f} %{where}" if there["meProp 50 %"] else "",
        ),
        Finding(
            "2c.saw-80",
            ends["SAW 80 %"] >= reached - 1 if on_imagenet and there["SAW 80 %"] else None,
            f"{ends['SAW 80 %']:.2f} %{where}" if there["SAW 80 %"] else "",
        ),
    ]
    return Outcome([t.row() for t in trained], findings, figure)


def _scopes(scale: Scale) -> list[Training]:
    trainings = dense(scale, NETWORK, DATA)
    for scope in ("nchw", "chw", "hw"):
        trainings += grid(scale, NETWORK, DATA, ["saw"], scale.sparsities, scope)
    return trainings + grid(scale, NETWORK, DATA, ["saw-random"], scale.sparsities)


def scopes(work: Work) -> Outcome:
    """Figure 3."""
    trained = work.trained
    series = {f"Top-K {scope}": {"algorithm": "saw", "scope": scope} for scope in ("nchw", "chw", "hw")}
    series["random"] = {"algorithm": "saw-random"}
    figure, (panel,) = panels(width=4.8)
    draw_over_sparsity(panel, trained, series)
    caption(figure, "SAW; " + said(work, BARS))
    high = [s for s in work.scale.sparsities if s >= HIGH]
    against = {
        label: is_above(trained, asked, series["random"], high)
        for label, asked in series.items()
        if label != "random"
    }
    steps = [
        (f"{upper[6:]} over {lower[6:]}", is_above(trained, series[upper], series[lower]))
        for upper, lower in (("Top-K nchw", "Top-K chw"), ("Top-K chw", "Top-K hw"))
    ]
    findings = [
        Finding(
            "3.random",
            all_hold(holds for holds, _ in against.values()),
            "; ".join(f"{label} {found}" for label, (_, found) in against.items()),
        ),
        Finding(
            "3.scope",
            all_hold(holds for _, (holds, _) in steps),
            "; ".join(f"{name} {found}" for name, (_, found) in steps),
        ),
    ]
    return Outcome([t.row() for t in trained], findings, figure)


EXPERIMENTS = (
    Experiment(
        "2a",
        "Forward pass: sparse weights against sparse activations",
        forward,
        lambda scale: _sensitivity(scale, ("forward-weight", "forward-activation")),
    ),
    Experiment(
        "2b",
        "Backward pass: sparse gradients against sparse weights and activations",
        backward,
        lambda scale: _sensitivity(scale, ("meprop", "saw")),
    ),
    Experiment("2c", "meProp and SAW on ImageNet", training_curves, _imagenet),
    Experiment("3", "Over what the Top-K is counted", scopes, _scopes),
)
