"""What is measured beside what is counted: seconds of whole training steps, and bytes that stay alive."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat import models
from torchswat.bench.breakdown import breakdown
from torchswat.bench.footprint import kept_bytes
from torchswat.bench.race import race
from torchswat.bench.record import circumstances
from torchswat.convert import sparsify_
from torchswat.training.checkpoint import write_atomically


def measured_steps(
    network: str, form: str, sparsities: tuple[float, ...], batch_size: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """Time training steps of a network, dense and with SWAT, and count the bytes that they save for backward.

    What was measured is kept in `folder` and read from there the next time.

    Parameters
    ----------
    network, form : str
        As in `torchswat.models.create`.
    sparsities : tuple of float
        Of SWAT, whose thresholds are found from a sample in every step.
    batch_size, repeats : int
        Images in the step; timed rounds, in which all contestants take turns.
    folder : Path
        Of the file.

    Returns
    -------
    dict
        ``circumstances``; for ``dense``, in the faster memory layout, and for each sparsity as text ``ms``,
        and the bytes of ``activations`` and of ``weights`` that are saved for backward;
        ``selection_share`` of the highest sparsity, the share of a step that finds thresholds. Times are the
        best of a few rounds: what disturbs so few can only slow them.
    """
    name = f"{network}-{form}-b{batch_size}-{'-'.join(f'{100 * s:g}' for s in sparsities)}"
    path = folder / f"measured-{name}-{torch.get_num_threads()}threads-{repeats}rounds.json"
    if path.exists():
        return json.loads(path.read_text())
    info = models.info(network, form)
    torch.manual_seed(0)
    model = models.create(network, form=form)
    images = torch.randn(batch_size, info.in_channels, info.image_size, info.image_size)
    labels = torch.randint(info.num_classes, (batch_size,))
    sparse = {s: sparsify_(copy.deepcopy(model), "swat", s, method="sample") for s in sparsities}
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = {"nchw": _step(model, images, labels)}
    steps["channels_last"] = _step(last, images.contiguous(memory_format=torch.channels_last), labels)
    steps |= {str(s): _step(twin, images, labels) for s, twin in sparse.items()}
    situation = circumstances(seed=0, repeats=repeats)
    times = race(steps, repeats)
    found: dict[str, Any] = {
        "circumstances": situation,
        "dense": {"ms": min(times["nchw"] + times["channels_last"]), **_weigh(model, images, labels)},
        "samples": times,
    }
    for sparsity, twin in sparse.items():
        found[str(sparsity)] = {"ms": min(times[str(sparsity)]), **_weigh(twin, images, labels)}
    parts = breakdown(steps[str(max(sparse))])
    found["selection_share"] = parts["selection"] / sum(parts.values())
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()

    return step


def _weigh(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Bytes that the backward pass finds: activations and all that depends on the batch; weights."""

    def loss() -> Tensor:
        return F.cross_entropy(model.train()(images), labels)

    layers = kept_bytes(model, loss, (images, labels))
    return {
        "activations": sum(layer.activations for layer in layers),
        "weights": sum(layer.weights + layer.parameters for layer in layers),
    }
