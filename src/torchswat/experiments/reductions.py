"""Figures 7, 8a, 8b and the accounts of Figure 5: operations and bytes of the paper's networks at 224x224.

Three columns stand side by side: the paper's number, ours counted layer by layer, and what is measured. The
paper makes every layer sparse; what is lost when the first convolution or the classifier stay dense is said.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import torch

from torchswat import models
from torchswat.accounting import Cost, Count, LayerCost, cost
from torchswat.convert import sparsify_
from torchswat.drawing import COLOURS, INK, caption, legend, panels
from torchswat.experiments.claims import Finding, claims
from torchswat.experiments.measure import measured_steps
from torchswat.experiments.outcome import Experiment, Outcome, Row, Work

NETWORKS = {"resnet18": "RN18", "vgg16": "VGG16", "densenet121": "DN121"}
"""Of Figures 5, 7 and 8, with the paper's abbreviations."""

SPARSITIES = (0.5, 0.7, 0.8)
_BATCH, _REPEATS = 16, 2  # of what is timed
_PAPER, _COUNTED, _REAL, _MEASURED = "the paper", "counted", "counted from masks", "measured"


@cache
def counted(network: str, sparsity: float) -> Cost:
    """Return the cost of a network at 224x224, for two random images and all layers sparse."""
    torch.manual_seed(0)
    model = sparsify_(models.create(network, form="imagenet"), "swat", sparsity)
    return cost(model, torch.randn(2, 3, 224, 224))


def _total(account: Cost, count: str, dense: tuple[str, ...] = ()) -> Count:
    """The total of a count where the layers named in `dense` are not sparse."""

    def of(layer: LayerCost) -> Count:
        found: Count = getattr(layer, count)
        return Count(found.dense, found.dense, found.dense) if layer.name in dense else found

    return sum((of(layer) for layer in account.layers), Count())


def _ends(account: Cost) -> tuple[str, str]:
    """The names of the first convolution and of the last layer."""
    products = [layer.name for layer in account.layers if layer.forward.dense]
    return products[0], products[-1]


def _rows(claim: str, count: str, work: Work, column: str) -> list[Row]:
    """A line for each network and sparsity: how many times less than dense, in every way of counting."""
    paper, rows = claims()[claim].values, []
    for network in NETWORKS:
        times = measured(network, work)
        for sparsity in SPARSITIES:
            account = counted(network, sparsity)
            first, last = _ends(account)
            whole = _total(account, count)
            row: Row = {
                "network": network,
                "sparsity": sparsity,
                "dense": whole.dense / account.batch,
                "paper": paper[sparsity],
                "counted": whole.dense / whole.formula,
                "counted_from_masks": whole.saving,
            }
            for name, dense in (("first_dense", (first,)), ("first_and_last_dense", (first, last))):
                part = _total(account, count, dense)
                row[name] = part.dense / part.formula
            if times:
                row["measured"] = times["dense"][column] / times[str(sparsity)][column]
            rows.append(row)
    return rows


def measured(network: str, work: Work) -> Row | None:
    """What was measured, at another scale than that of the tests."""
    if work.scale.name == "smoke":
        return None
    return measured_steps(network, "imagenet", SPARSITIES, _BATCH, _REPEATS, work.folder)


def _outcome(
    claim_name: str, rows: list[Row], quantity: str, real: str, note: str, remarks: list[str]
) -> Outcome:
    """A panel a network: the paper's number, ours, and what is measured (`real`; `note` says how)."""
    claim = claims()[claim_name]
    figure, axes = panels(len(NETWORKS), width=3.1, height=3.0)
    ways = {_PAPER: "paper", _COUNTED: "counted", _REAL: "counted_from_masks", _MEASURED: "measured"}
    ways = {label: key for label, key in ways.items() if any(key in row for row in rows)}
    for panel, (network, short) in zip(axes, NETWORKS.items(), strict=True):
        mine = [row for row in rows if row["network"] == network]
        for index, (label, key) in enumerate(ways.items()):
            places = [place + (index - (len(ways) - 1) / 2) * 0.8 / len(ways) for place in range(len(mine))]
            colour = COLOURS[7] if key == "paper" else COLOURS[index - 1]
            name = real if key == "measured" else label
            bars = panel.bar(places, [row[key] for row in mine], 0.74 / len(ways), color=colour, label=name)
            panel.bar_label(bars, fmt="%.1f", fontsize=5.5, padding=1, color=INK)
        panel.axhline(1, color=INK, linewidth=0.8)
        panel.set_xticks(range(len(mine)), [f"S = {row['sparsity']:g}" for row in mine])
        panel.set(
            title=f"{short}, 224x224",
            ylabel=f"{quantity}, times less than dense",
            ylim=(0, 1.35 * max(row[key] for row in rows for key in ways.values())),
        )
        legend(panel, loc="upper left")
    counting = "All layers sparse, as the paper counts; the line at 1 is dense."
    caption(figure, f"{counting} {note}" if "measured" in ways.values() else counting)
    near = all(abs(row["counted"] - row["paper"]) <= claim.tolerance for row in rows)
    text = "counted " + "; ".join(f"{short} {_series(rows, network)}" for network, short in NETWORKS.items())
    if "measured" in ways.values():
        slow = [row["measured"] for row in rows if row["sparsity"] == SPARSITIES[-1]]
        text += f"; measured, {real} at 80 %: {_range(slow)}"
    return Outcome(rows, [Finding(claim_name, near, text)], figure, remarks)


def _series(rows: list[Row], network: str) -> str:
    """What was counted of a network, in the order of the sparsities."""
    return ", ".join(f"{row['counted']:.2f}x" for row in rows if row["network"] == network)


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}x"


def _deviations(rows: list[Row]) -> str:
    """What the ends of the networks take away at the highest sparsity."""
    highest = [row for row in rows if row["sparsity"] == SPARSITIES[-1]]
    said = [
        f"{NETWORKS[row['network']]} {row['first_dense']:.2f}x and {row['first_and_last_dense']:.2f}x"
        for row in highest
    ]
    return (
        "With the first convolution dense, and with the classifier dense as well, there remain at 80 %: "
        + "; ".join(said)
        + "."
    )


def operations(work: Work) -> Outcome:
    """Figure 7."""
    rows = _rows("7.operations", "macs", work, "ms")
    note = f"Seconds: whole steps, batch {_BATCH}, best of {_REPEATS}, against the faster dense layout."
    remarks = [
        "Counted are the multiply-accumulates of the three products; batch norm, ReLU, pooling and the "
        "optimizer are not among them but take their time in what is measured.",
        "From masks the count is lower where fewer than k entries differ from zero behind a ReLU: zeros that "
        "Top-K would keep are not stored.",
        _deviations(rows),
    ]
    return _outcome("7.operations", rows, "operations", "seconds", note, remarks)


def weight_bytes(work: Work) -> Outcome:
    """Figure 8a."""
    rows = _rows("8a.weights", "weights", work, "weights")
    for row in rows:  # the paper counts values alone; positions are bytes too
        account = counted(row["network"], row["sparsity"])
        values, positions = account.total("weights"), account.total("weight_positions")
        row["with_positions"] = values.dense / (values.measured + positions.measured)
    note = "Bytes: the weights that are saved for backward, with their positions."
    highest = [row["with_positions"] for row in rows if row["sparsity"] == SPARSITIES[-1]]
    remarks = [
        "The paper counts values alone. Where they stand takes a bit an entry at these sparsities: counted "
        f"with their positions, {_range(highest)} remain at 80 %.",
        _deviations(rows),
    ]
    return _outcome("8a.weights", rows, "weights read", "bytes", note, remarks)


def activation_bytes(work: Work) -> Outcome:
    """Figure 8b."""
    rows = _rows("8b.activations", "activations", work, "activations")
    note = f"Bytes: all that depends on the batch and lives between forward and backward, batch {_BATCH}."
    remarks = [
        "Measured bytes hold more than the paper counts: positions, the bits of ReLU, winners of poolings.",
        "Batch norm keeps its input whole, which bounds the saving; counted are its inputs and those of the "
        "convolutions and of the classifier, as in the paper.",
        "VGG-16 saves least: a pooling stands between some batch norms and the next convolution, so what the "
        "batch norm keeps whole has four times the entries of what the convolution keeps.",
        "The paper's abstract says 23 to 37 %, or 1.30x to 1.59x: less than the 1.7x of its section 3.3.",
        _deviations(rows),
    ]
    outcome = _outcome("8b.activations", rows, "activations kept", "bytes", note, remarks)
    outcome.findings.append(_footprint(rows))
    return outcome


def _footprint(rows: list[Row]) -> Finding:
    """The abstract's range, which holds where one network has both of its ends."""
    claim, said, holds = claims()["8b.footprint"], [], False
    for network, short in NETWORKS.items():
        mine = {row["sparsity"]: 100 * (1 - 1 / row["counted"]) for row in rows if row["network"] == network}
        said.append(f"{short} {mine[0.5]:.1f} to {mine[0.8]:.1f} %")
        holds |= all(abs(mine[s] - claim.values[s]) <= claim.tolerance for s in claim.values)
    return Finding(claim.name, holds, "; ".join(said))


def accounts(work: Work) -> Outcome:
    """The networks of Figure 5, layer by layer."""
    rows: list[Row] = []
    for network in NETWORKS:
        for sparsity in SPARSITIES:
            for layer in counted(network, sparsity).layers:
                row: Row = {"network": network, "sparsity": sparsity, "layer": layer.name, "kind": layer.kind}
                for name in ("forward", "grad_input", "grad_weight", "weights", "activations"):
                    for way, amount in asdict(getattr(layer, name)).items():
                        row[f"{name}_{way}"] = amount / (1 if name == "weights" else 2)  # an image
                rows.append(row)
    figure, axes = panels(len(NETWORKS), width=3.1, height=3.0)
    for panel, (network, short) in zip(axes, NETWORKS.items(), strict=True):
        for place, sparsity in enumerate((0.0, *SPARSITIES)):
            account, base = counted(network, sparsity or SPARSITIES[0]), 0.0
            for colour, product in zip(COLOURS, ("forward", "grad_input", "grad_weight"), strict=False):
                total = account.total(product)
                amount = (total.measured if sparsity else total.dense) / account.batch / 1e9
                label = product.replace("_", " ") if place == 0 else None
                panel.bar([place], [amount], 0.7, base, color=colour, label=label)
                base += amount
        panel.set_xticks(range(4), ["dense", *(f"S = {s:g}" for s in SPARSITIES)])
        panel.set(title=f"{short}, 224x224", ylabel="multiply-accumulates an image (10⁹)")
        legend(panel)
    caption(figure, "counted from the masks of a real pass, all layers sparse")
    return Outcome(rows, [], figure)


EXPERIMENTS = (
    Experiment("7", "Operations of a training step", operations),
    Experiment("8a", "Weights read by the backward pass", weight_bytes),
    Experiment("8b", "Activations saved for backward", activation_bytes),
    Experiment("5-accounts", "Operations of Figure 5's networks, layer by layer", accounts),
)
