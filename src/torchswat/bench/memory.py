"""Memory of training steps: bytes saved for backward, by layer and in all, and the peak of a step.

Each setting runs in a fresh process. Everything is measured against dense torch: how many times fewer bytes
of activations are kept (positions, masks and statistics included), how many times fewer bytes of weights
the backward pass reads, and whether the peak falls by as much as the bytes kept say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from torchswat.algorithms import ALGORITHMS
from torchswat.bench.footprint import Setting, measure_apart
from torchswat.bench.race import Tick
from torchswat.bench.record import Record, Row, circumstances
from torchswat.bench.step import NETWORKS, STANDARD, check_networks
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.errors import InvalidValue
from torchswat.selection import check_sparsity

SPARSITIES = (0.5, 0.7, 0.8)
OTHERS_AT = 0.8
"""The sparsity at which the algorithms beside SWAT are measured."""

ACTIVATION_TARGETS: dict[str, dict[float, float]] = {
    "whole": {0.5: 1.28, 0.7: 1.47, 0.8: 1.57},
    "int8": {0.5: 2.2, 0.7: 2.9, 0.8: 3.4},
}
"""Times fewer bytes of activations that the engine was built for, by batch norm's input and sparsity."""

WEIGHT_TARGETS = {0.5: 1.6, 0.7: 2.5, 0.8: 3.5}
"""The same of the weights that the backward pass reads."""


def bench_memory(
    networks: Sequence[str] = STANDARD,
    sparsities: Sequence[float] = SPARSITIES,
    norm_inputs: Sequence[str] = tuple(NORM_INPUTS),
    algorithms: Sequence[str] = tuple(ALGORITHMS),
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Measure the memory of a training step of `networks`, dense and with every algorithm.

    The optimizer is SGD with momentum 0.9 and weight decay 1e-4; its state is there before the step.

    Parameters
    ----------
    networks : sequence of str
        Names in `torchswat.bench.step.NETWORKS`.
    sparsities : sequence of float
        Of SWAT, in (0, 1); the other algorithms run at 0.8.
    norm_inputs : sequence of str
        How SWAT's batch norms keep their input: names in `torchswat.engine.batch_norm.NORM_INPUTS`.
    algorithms : sequence of str
        Names in `torchswat.algorithms.ALGORITHMS`; dense is always among them.
    batch_size : int, optional
        Images in a batch; by default what the network is timed with.
    device : str, default "cpu"
        Where it runs, such as ``cuda``.
    seed : int, default 0
        Of weights and images.
    tick : callable
        Called once a setting.

    Returns
    -------
    Record

    Raises
    ------
    UnknownName, InvalidValue
        For a network that is not in the list, a sparsity outside [0, 1), or a device that is not there.
    """
    check_networks(networks)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InvalidValue(f"device is {device!r}; allowed here is 'cpu'" + _cuda_hint())
    situation = circumstances(seed, repeats=1) | {"device": device, "allocator_tuned": False}
    rows: list[Row] = []
    for name in networks:
        network = NETWORKS[name]
        dense = Setting(
            *(network.name, network.form, batch_size or network.batch_size),
            device=device,
            threads=torch.get_num_threads(),
            seed=seed,
        )
        rows += _compare(dense, settings(dense, sparsities, norm_inputs, algorithms), tick)
    remarks = [] if all(row["peak"] for row in rows) else ["The peak is measured on Linux and CUDA alone."]
    return Record("memory", situation, rows, [], remarks)


def _cuda_hint() -> str:
    return " or 'cuda'" if torch.cuda.is_available() else "; torch sees no GPU."


def settings(
    dense: Setting, sparsities: Sequence[float], norm_inputs: Sequence[str], algorithms: Sequence[str]
) -> list[Setting]:
    """Return what is measured beside `dense`.

    Examples
    --------
    >>> found = settings(Setting("resnet18", "cifar", 128), (0.5, 0.8), ("whole", "int8"), ("swat", "saw"))
    >>> [(setting.algorithm, setting.sparsity, setting.norm_input) for setting in found][2:]
    [('swat', 0.8, 'whole'), ('swat', 0.8, 'int8'), ('saw', 0.8, 'whole')]
    """
    swat = [
        replace(dense, algorithm="swat", sparsity=sparsity, norm_input=norm_input)
        for sparsity in sparsities
        for norm_input in norm_inputs
    ]
    others = [
        replace(dense, algorithm=algorithm, sparsity=OTHERS_AT)
        for algorithm in algorithms
        if algorithm not in ("dense", "swat")
    ]
    return [*(swat if "swat" in algorithms else []), *others]


def _compare(dense: Setting, others: Sequence[Setting], tick: Tick) -> list[Row]:
    rows: list[Row] = []
    for setting in (dense, *others):
        rows.append(_row(setting, measure_apart(setting), rows[0] if rows else None))
        tick()
    return rows


def _row(setting: Setting, found: dict[str, Any], dense: Row | None) -> Row:
    """Return one line of the result, compared with that of the `dense` network (None: this is it)."""
    total = {
        kind: sum(layer[kind] for layer in found["layers"])
        for kind in ("activations", "weights", "parameters")
    }
    above = None if found["peak"] is None else found["peak"] - found["idle"]
    row: Row = {
        "network": setting.network,
        "form": setting.form,
        "batch_size": setting.batch_size,
        "algorithm": setting.algorithm,
        "sparsity": None if dense is None else setting.sparsity,
        "norm_input": setting.norm_input,
        "activations": total["activations"],
        "weights_read": total["weights"] + total["parameters"],
        "weights_beside": total["weights"],
        "idle": found["idle"],
        "peak": above,
    }
    first = row if dense is None else dense
    by_swat = setting.algorithm == "swat"
    kept, dense_kept = (r["activations"] + r["weights_beside"] for r in (row, first))
    return row | {
        "fewer_activations": first["activations"] / max(1, row["activations"]),
        "fewer_weights": first["weights_read"] / max(1, row["weights_read"]),
        "activation_target": _target(ACTIVATION_TARGETS.get(setting.norm_input, {}), setting)
        if by_swat
        else None,
        "weight_target": _target(WEIGHT_TARGETS, setting) if by_swat else None,
        "peak_by_bytes": None if above is None else first["peak"] - dense_kept + kept,
        "layers": found["layers"],
    }


def _target(targets: dict[float, float], setting: Setting) -> float | None:
    """Return the target of the setting, for the networks that have any."""
    return targets.get(setting.sparsity) if setting.network in STANDARD else None


def rounds(
    networks: Sequence[str],
    sparsities: Sequence[float] = SPARSITIES,
    norm_inputs: Sequence[str] = tuple(NORM_INPUTS),
    algorithms: Sequence[str] = tuple(ALGORITHMS),
) -> int:
    """Return how often `bench_memory` calls its `tick`."""
    example = Setting("", "", 0)
    return len(networks) * (1 + len(settings(example, sparsities, norm_inputs, algorithms)))
